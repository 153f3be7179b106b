//! The forms of attention with many queries, and which of them is taken.
//!
//! | form | what it is | for |
//! |---|---|---|
//! | `blocks` | `mma.sync` and copies in the background | bf16 |
//! | `hopper` | the copy engine and products of warpgroups | bf16, `sm_90a`, no cache, measured or asked for |
use super::Attention;
use crate::cuda::Options;
use crate::cuda::matmul_forms::choose;
use lapidary_runtime_gpu::program::{Dtype, FormChoice};

/// How blocks of queries are computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Form {
    /// For every supported GPU.
    Blocks,
    /// With Hopper's instructions.
    Hopper,
}

impl Attention {
    /// Whether queries go through tensor cores, block by block.
    pub fn many(&self) -> bool {
        self.dtype == Dtype::Bf16
            && self.queries > super::FEW_QUERIES
            && self.head_dim.is_multiple_of(8)
            && self.head_dim <= 256
            && self.scale > 0.0
    }

    /// Every form that can compute it, by name; none where it goes query by query.
    pub(super) fn forms(&self, options: &Options) -> Vec<(String, Form)> {
        let mut forms = Vec::new();
        if self.many() {
            forms.push(("blocks".into(), Form::Blocks));
        }
        // The copy engine knows where a sequence ends only where that is where its keys end.
        let known = !self.cached && (self.keys == self.queries || !self.mask.causal);
        if self.many() && options.hopper && known {
            forms.push(("hopper".into(), Form::Hopper));
        }
        forms
    }

    /// The form that is taken; blocks where nothing was measured.
    pub(super) fn choose(&self, options: &Options) -> (Form, FormChoice) {
        let key = format!("{} {} sequences of {}", self.dtype.word(), self.batch, self.describe());
        choose(&self.forms(options), key, ("blocks".into(), Form::Blocks), options)
    }
}
