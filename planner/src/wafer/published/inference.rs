//! Prefill and decode (later).
