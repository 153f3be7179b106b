//! The reference interpreter as a device: it runs the graph as the passes left it, op by op.

use super::device::{Ask, Device, Trace};
use crate::failure::Failure;
use lapidary_models::graph::{Param, TensorType};
use lapidary_models::op::ScaleRole;
use lapidary_models::{DType, Dims, Function, Graph, Mode, Op};
use lapidary_passes::cpu::{HostFunction, HostModule, HostParam};
use lapidary_reference::{Cache, Oracle, Params, Real, largest};

/// A module with its parameters, folded factors multiplied in.
pub struct Interpreted<T> {
    module: HostModule,
    params: Params<T>,
}

impl<T: Real> Interpreted<T> {
    /// A module and the published values of its parameters.
    pub fn new(module: HostModule, published: &Params<T>) -> Self {
        let params = scaled(&module, published);
        Interpreted { module, params }
    }

    /// Every value of a run, by name and in order, rows of all tokens; logits are the last one's.
    pub fn run(&self, ids: &[Vec<u32>]) -> lapidary_reference::Run<T> {
        let graph = graph(&self.module, ids, 0);
        Oracle { graph: &graph, params: &self.params }.run(ids, &mut Cache::new())
    }

    fn continuation(&self, prompt: &[u32], count: usize) -> Vec<u32> {
        let mut cache = Cache::new();
        let mut ids = prompt.to_vec();
        let mut cached = 0;
        for _ in 0..count {
            let new = vec![ids[cached..].to_vec()];
            let graph = graph(&self.module, &new, cached as u64);
            let logits = Oracle { graph: &graph, params: &self.params }.run(&new, &mut cache).logits;
            cached = ids.len();
            let last = logits.data.len() - logits.width();
            ids.push(largest(&logits.data[last..][..self.module.model.vocab as usize]));
        }
        ids.split_off(prompt.len())
    }
}

impl<T: Real> Device for Interpreted<T> {
    fn module(&self) -> &HostModule {
        &self.module
    }

    fn trace(&self, ids: &[Vec<u32>], wanted: &dyn Fn(&str) -> bool) -> Result<Trace, Failure> {
        let run = self.run(ids);
        let plain = |data: &[T]| data.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
        let vocab = self.module.model.vocab as usize;
        let logits = run.logits.rows().flat_map(|row| plain(&row[..vocab])).collect();
        let kept = run.trace.iter().filter(|(name, _)| wanted(name));
        Ok(Trace { values: kept.map(|(name, t)| (name.clone(), plain(&t.data))).collect(), logits })
    }

    fn continuations(&self, asked: &[Ask<'_>]) -> Result<Vec<Vec<u32>>, Failure> {
        Ok(asked.iter().map(|ask| self.continuation(ask.prompt, ask.count)).collect())
    }
}

/// The name of a parameter in the graph: the same tensor may be read with different factors.
fn graph_name(param: &HostParam) -> String {
    if param.scale == 1.0 { param.name.clone() } else { format!("{} x {:e}", param.name, param.scale) }
}

fn scaled<T: Real>(module: &HostModule, published: &Params<T>) -> Params<T> {
    let mut params = Params::new();
    for param in module.layer.params.iter().chain(&module.main.params) {
        let layers = if param.name.contains('*') { module.model.layers } else { 1 };
        for layer in 0..layers {
            let fill = |name: &str| name.replace('*', &layer.to_string());
            if let Some(values) = published.get(&fill(&param.name)) {
                let scale = T::from_f64(param.scale);
                params.insert(fill(&graph_name(param)), values.map(|x| x * scale));
            }
        }
    }
    params
}

/// The module as a graph over these tokens: `cached` of each sequence are in the cache, and every one has logits.
fn graph(module: &HostModule, ids: &[Vec<u32>], cached: u64) -> Graph {
    let dims = Dims { batch: ids.len() as u64, seq: ids[0].len() as u64, cached };
    let param = |param: &HostParam| Param {
        name: graph_name(param),
        ty: TensorType::new(DType::F32, []),
        per_layer: param.name.contains('*'),
    };
    let first = module.layer.params.len();
    Graph {
        name: module.model.name.clone(),
        mode: if cached == 0 { Mode::Prefill } else { Mode::Decode },
        dims,
        n_layers: module.model.layers,
        params: module.layer.params.iter().chain(&module.main.params).map(param).collect(),
        slots: Vec::new(),
        functions: vec![bound(&module.layer, 0, cached), bound(&module.main, first, cached)],
    }
}

/// The function with its parameters counted from `first` and its positions from `cached`.
fn bound(host: &HostFunction, first: usize, cached: u64) -> Function {
    let mut function = host.function.clone();
    for node in &mut function.nodes {
        match &mut node.op {
            Op::Param { param } => *param += first,
            Op::Position { offset } | Op::Rope { offset, .. } | Op::Mask { offset, .. } => *offset = cached,
            Op::KvAppend { cached: rows, .. } => *rows = cached,
            op @ Op::LastToken => *op = Op::Scale { by: 1.0, role: ScaleRole::Output },
            _ => {}
        }
    }
    function
}
