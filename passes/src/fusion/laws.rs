//! What holds for every function, not only for those of models.

use super::tests::covers;
use super::*;
use lapidary_models::graph::Value;
use lapidary_models::op::{Cache, ScaleRole};
use lapidary_models::spec::{Activation, NormKind};
use lapidary_models::{DType, Node, Op, TensorType, ValueId};
use proptest::prelude::*;

/// Builds a function of random ops over `[2, 3, 8]` rows (and `[2, 2, 3, 3]` scores) from a list of choices.
struct Random {
    function: Function,
    rows: Vec<ValueId>,
    scores: Vec<ValueId>,
}

impl Random {
    fn new() -> Random {
        let function = Function {
            name: "random".into(),
            per_layer: true,
            arguments: vec![ValueId(0), ValueId(1)],
            values: vec![Value { ty: rows() }, Value { ty: rows() }],
            nodes: Vec::new(),
            results: Vec::new(),
        };
        Random { function, rows: vec![ValueId(0), ValueId(1)], scores: Vec::new() }
    }

    fn push(&mut self, op: Op, inputs: Vec<ValueId>, ty: TensorType) -> ValueId {
        let output = ValueId(self.function.values.len());
        self.function.values.push(Value { ty });
        let name = format!("n{}", self.function.nodes.len());
        self.function.nodes.push(Node { name, op, inputs, output });
        output
    }

    fn param(&mut self, shape: &[u64]) -> ValueId {
        self.push(Op::Param { param: 0 }, vec![], TensorType::new(DType::F32, shape))
    }

    fn step(&mut self, kind: u8, a: usize, b: usize) {
        let (x, y) = (self.rows[a % self.rows.len()], self.rows[b % self.rows.len()]);
        let s = (!self.scores.is_empty()).then(|| self.scores[a % self.scores.len()]);
        let row = |op: Op, inputs: Vec<ValueId>, this: &mut Random| {
            let made = this.push(op, inputs, rows());
            this.rows.push(made);
        };
        match (kind, s) {
            (0, _) => row(Op::Add, vec![x, y], self),
            (1, _) => row(Op::Mul, vec![x, y], self),
            (2, _) => row(Op::Scale { by: 2.0, role: ScaleRole::Residual }, vec![x], self),
            (3, _) => row(Op::Activation(Activation::Silu), vec![x], self),
            (4, _) => {
                let weight = self.param(&[8]);
                row(Op::Norm { kind: NormKind::Rms, eps: 1e-5 }, vec![x, weight], self);
            }
            (5 | 6, _) => {
                let weight = self.param(&[8, 8]);
                row(Op::Linear, vec![x, weight], self);
            }
            (7, _) => row(Op::KvAppend { cache: Cache::Key, cached: 0 }, vec![x], self),
            (8, Some(s)) => self.score(Op::Softmax, vec![s]),
            (9, Some(s)) => self.score(Op::Scale { by: 0.5, role: ScaleRole::Attention }, vec![s]),
            (10, Some(s)) => row(Op::Values { heads: 2, kv_heads: 2 }, vec![s, y], self),
            _ => self.score(Op::Scores { heads: 2, kv_heads: 2 }, vec![x, y]),
        }
    }

    fn score(&mut self, op: Op, inputs: Vec<ValueId>) {
        let made = self.push(op, inputs, TensorType::new(DType::F32, [2, 2, 3, 3]));
        self.scores.push(made);
    }
}

fn rows() -> TensorType {
    TensorType::new(DType::F32, [2, 3, 8])
}

fn functions() -> impl Strategy<Value = Function> {
    let steps = proptest::collection::vec((0u8..12, 0usize..64, 0usize..64), 1..24);
    (steps, 0usize..64).prop_map(|(steps, result)| {
        let mut random = Random::new();
        steps.into_iter().for_each(|(kind, a, b)| random.step(kind, a, b));
        let returned = [random.rows[result % random.rows.len()], random.rows[random.rows.len() - 1]];
        random.function.results = returned.to_vec();
        random.function
    })
}

fn bytes(plan: &FusionPlan) -> (u64, u64) {
    (plan.regions.iter().map(|r| r.bytes_before).sum(), plan.regions.iter().map(|r| r.bytes_after).sum())
}

proptest! {
    #[test]
    fn kernels_cover_every_op_once_in_an_order_that_runs(function in functions()) {
        covers(&function, &plan(&function, &Rules::all()));
    }

    #[test]
    fn every_merge_saves_what_it_says(function in functions()) {
        let plan = plan(&function, &Rules::all());
        let (before, after) = bytes(&plan);
        let merged: u64 = plan.merges.iter().map(|merge| merge.saved_bytes).sum();
        prop_assert!(plan.merges.iter().all(|merge| merge.saved_bytes > 0));
        prop_assert_eq!(before - after, merged);
    }

    #[test]
    fn every_kernel_is_legal_by_itself(function in functions()) {
        let flow = Flow::new(&function);
        for region in plan(&function, &Rules::all()).regions {
            let nodes = region.nodes.iter().copied().collect();
            prop_assert_eq!(legality::kernel(&flow, &nodes), Ok(region.anchor));
        }
    }

    #[test]
    fn fewer_rules_never_move_fewer_bytes_than_none(function in functions(), rule in 0..Rule::ALL.len()) {
        let one = bytes(&plan(&function, &Rules::only([Rule::ALL[rule]])));
        let none = bytes(&plan(&function, &Rules::none()));
        prop_assert_eq!(one.0, none.0);
        prop_assert!(one.1 <= none.1);
    }

    #[test]
    fn the_plan_depends_on_nothing_else(function in functions()) {
        prop_assert_eq!(plan(&function, &Rules::all()), plan(&function, &Rules::all()));
    }
}
