//! What it runs on and what things cost: machines as data, units and price rules.
