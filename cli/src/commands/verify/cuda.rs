//! A GPU as a device: the forward program shows the residual stream, the decode program continues prompts.

use super::device::{Ask, Device, Trace};
use super::simulated::stream_names;
use crate::failure::Failure;
use crate::gpu::{Ask as Asked, Gpu};
use lapidary_passes::cpu::HostModule;
use lapidary_runtime_cpu::{Generation, Sampling};

/// A model on a GPU and the module that its names come from.
pub struct OnGpu<'w> {
    /// The model as the passes left it.
    pub module: HostModule,
    /// What runs it.
    pub gpu: Gpu<'w>,
}

impl Device for OnGpu<'_> {
    fn module(&self) -> &HostModule {
        &self.module
    }

    /// Between kernels only the residual stream has the same place in every program, so nothing else is traced.
    fn trace(&self, ids: &[Vec<u32>], wanted: &dyn Fn(&str) -> bool) -> Result<Trace, Failure> {
        let made = self.gpu.forward(ids)?;
        let names = stream_names(&self.module).into_iter().skip(self.gpu.first_layer());
        let values = names.zip(made.stream);
        let wide = |rows: Vec<f32>| rows.into_iter().map(f64::from).collect::<Vec<f64>>();
        Ok(Trace {
            values: values.filter(|(name, _)| wanted(name)).map(|(name, rows)| (name, wide(rows))).collect(),
            logits: wide(made.logits),
        })
    }

    fn continuations(&self, asked: &[Ask<'_>]) -> Result<Vec<Vec<u32>>, Failure> {
        let prompts: Vec<Vec<u32>> = asked.iter().map(|ask| ask.prompt.to_vec()).collect();
        let max_new = asked.iter().map(|ask| ask.count).max().unwrap_or(0);
        let generation = Generation { max_new, stop: Vec::new(), sampling: Sampling::GREEDY };
        let ask = Asked { prompts: &prompts, generation: &generation };
        let made = self.gpu.generate(&ask, &mut |_, _| {})?;
        let cut = |((ids, _), ask): ((Vec<u32>, _), &Ask<'_>)| ids.into_iter().take(ask.count).collect();
        Ok(made.into_iter().zip(asked).map(cut).collect())
    }
}
