//! The host program computes what the reference computes: on random models and on stored ones.

use lapidary_ir::{IrContext, import::import};
use lapidary_models::spec::{Activation, Position};
use lapidary_models::{DType, ModelSpec, mup, testing};
use lapidary_passes::cpu::{self, HostFunction, HostModule, HostParam, Options};
use lapidary_passes::fusion::{self, Rule, Rules, Step};
use lapidary_passes::lower_to_cpu::emit_cpu;
use lapidary_passes::{Fusion, Goal, Mup, Watch, pipeline, run};
use lapidary_runtime_cpu::program::WeightType;
use lapidary_runtime_cpu::{
    Engine, Generation, LoadOptions, Model, Observation, Sampling, TensorView, WeightError, Weights, Which,
    generate,
};
use lapidary_tests::checkpoint::{STORED, Stored, random_params};
use lapidary_tests::noise::{self, Expected, Operands};
use lapidary_tests::oracle::{Params, Tensor, fold_params};
use proptest::prelude::*;
use std::borrow::Cow;
use std::collections::BTreeMap;

struct Stock<'p>(&'p Params<f64>);

impl Weights for Stock<'_> {
    fn tensor(&self, name: &str) -> Result<TensorView<'_>, WeightError> {
        let t = self.0.get(name).ok_or_else(|| WeightError::Missing { name: name.into() })?;
        let bytes = t.data.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect();
        let shape = t.shape.iter().map(|n| *n as u64).collect();
        Ok(TensorView { dtype: DType::F32, shape, bytes: Cow::Owned(bytes) })
    }
}

fn host_function(f: &lapidary_models::Function, params: Vec<HostParam>, rules: &Rules) -> HostFunction {
    let plan = fusion::plan(f, rules);
    let kernel = |step: &Step| match step {
        Step::Region(r) => Some(plan.regions[*r].nodes.clone()),
        Step::Keep(n) => matches!(f.nodes[*n].op, lapidary_models::Op::Repeat { .. }).then(|| vec![*n]),
    };
    HostFunction { function: f.clone(), params, kernels: plan.steps.iter().filter_map(kernel).collect() }
}

fn module(spec: &ModelSpec, rules: &Rules, folded: bool) -> HostModule {
    let graph = cpu::host_graph(spec).expect("a graph");
    let fold = if folded { mup::inference_fold(spec) } else { None };
    let scale = |name: &str| fold.as_ref().map_or(1.0, |f| f.scale(name));
    let params: Vec<HostParam> =
        graph.params.iter().map(|p| HostParam { name: p.name.clone(), scale: scale(&p.name) }).collect();
    let graph = fold.as_ref().map_or(graph.clone(), |f| f.apply(&graph));
    HostModule {
        share: None,
        model: cpu::sizes(spec),
        layer: host_function(graph.layer(), params.clone(), rules),
        main: host_function(graph.main(), params, rules),
    }
}

fn load(
    spec: &ModelSpec,
    params: &Params<f64>,
    rules: &Rules,
    folded: bool,
    weights: WeightType,
    engine: Engine,
) -> Model {
    load_with(spec, params, rules, folded, weights, engine, 2)
}

fn load_with(
    spec: &ModelSpec,
    params: &Params<f64>,
    rules: &Rules,
    folded: bool,
    weights: WeightType,
    engine: Engine,
    jobs: usize,
) -> Model {
    let program =
        cpu::lower(&module(spec, rules, folded), &Options::all(weights)).unwrap_or_else(|e| panic!("{e}"));
    let text = program.to_json();
    let back = lapidary_runtime_cpu::CpuProgram::from_json(&text).expect("reads back");
    assert_eq!(back, program);
    let checked = back.check().unwrap_or_else(|e| panic!("{e}"));
    Model::load(checked, &Stock(params), LoadOptions { jobs, engine, ..LoadOptions::default() })
        .expect("loads")
}

/// The program that the command line runs: through import, passes and emission.
fn through_passes(spec: &ModelSpec, params: &Params<f64>, mup: Mup, fusion: &Fusion) -> Model {
    let cx = IrContext::new();
    let mut module = import(&cx, &cpu::host_graph(spec).expect("a graph")).expect("imports");
    let passes = pipeline::pipeline(Goal::Cpu, mup, fusion).expect("a pipeline");
    run(&mut module, &passes, Watch::default()).unwrap_or_else(|e| panic!("{e}"));
    let program = emit_cpu(&module, spec, &Options::all(WeightType::F32));
    let checked = program.unwrap_or_else(|e| panic!("{e:?}")).check().unwrap_or_else(|e| panic!("{e}"));
    let options = LoadOptions { jobs: 2, engine: Engine::Compiled, ..LoadOptions::default() };
    Model::load(checked, &Stock(params), options).expect("loads")
}

/// Logits of every token of every prompt, all prompts as one batch.
fn all_logits(model: &Model, prompts: &[&[u32]]) -> Vec<Vec<f32>> {
    let longest = prompts.iter().map(|p| p.len()).max().expect("prompts");
    let mut session = model.session(prompts.len(), longest).expect("room");
    let logits = session.extend(prompts, Which::All).expect("runs");
    (0..logits.rows()).map(|row| logits.row(row).to_vec()).collect()
}

fn wide(rows: &[Vec<f32>]) -> Vec<Vec<f64>> {
    rows.iter().map(|row| row.iter().map(|x| f64::from(*x)).collect()).collect()
}

/// Any subset of the fusion rules.
fn fusions() -> impl Strategy<Value = Fusion> {
    proptest::sample::subsequence(Rule::ALL.to_vec(), 0..=Rule::ALL.len()).prop_map(|rules| {
        let names: Vec<&str> = rules.iter().map(|rule| rule.name()).collect();
        if names.is_empty() { Fusion::Off } else { Fusion::Options(format!("only={}", names.join(","))) }
    })
}

fn rules() -> [Rules; 2] {
    [Rules::none(), Rules::all()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn random_models_agree_with_the_reference(
        spec in testing::specs(), seed in 0u64..1000, fused in 0usize..2, cut in 1usize..8,
        engine in prop_oneof![Just(Engine::Compiled), Just(Engine::Interpreted)],
    ) {
        let params = random_params::<f64>(&spec, seed);
        let model = load(&spec, &params, &rules()[fused], false, WeightType::F32, engine);
        let id = |i: u64| ((seed + 7 * i * i + 3 * i) % spec.vocab) as u32;
        let prompts: Vec<Vec<u32>> = [12, 5, 9].iter().map(|n| (0..*n).map(|i| id(i + n)).collect()).collect();
        let expected = Expected::new(&spec, &params, &prompts, Operands::F32, seed);
        let bound = expected.bound();
        let first = [0, 12, 17];
        let off = |found: &[f32], s: usize, t: usize| {
            noise::apart(&wide(&[found.to_vec()]), &expected.rows[first[s] + t..=first[s] + t])
        };
        // all logits of a ragged batch at once
        let mut session = model.session(3, 12).expect("room");
        let lists: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let logits = session.extend(&lists, Which::All).expect("runs");
        let mut at = 0;
        for (s, prompt) in prompts.iter().enumerate() {
            for t in 0..prompt.len() {
                let d = off(logits.row(at), s, t);
                prop_assert!(d <= bound, "sequence {s} token {t}: {d}, bound {bound}");
                at += 1;
            }
        }
        // a prefix, then the rest one by one where there is some
        let mut session = model.session(3, 12).expect("room");
        let cut_at = |p: &Vec<u32>| cut.min(p.len());
        let heads: Vec<&[u32]> = prompts.iter().map(|p| &p[..cut_at(p)]).collect();
        let logits = session.prefill(&heads).expect("runs");
        for (s, prompt) in prompts.iter().enumerate() {
            let d = off(logits.row(s), s, cut_at(prompt) - 1);
            prop_assert!(d <= bound, "prefix of {s}: {d}, bound {bound}");
        }
        for step in cut..12 {
            let next: Vec<&[u32]> = prompts.iter().map(|p| p.get(step..step + 1).unwrap_or(&[])).collect();
            let logits = session.prefill(&next).expect("runs");
            for (at, s) in (0..3).filter(|s| step < prompts[*s].len()).enumerate() {
                let d = off(logits.row(at), s, step);
                prop_assert!(d <= bound, "sequence {s} step {step}: {d}, bound {bound}");
            }
        }
    }
}

/// Weights as bf16 holds them.
fn rounded(params: &Params<f64>) -> Params<f64> {
    let near = |x: &f64| half::bf16::from_f32(*x as f32).to_f64();
    let round = |t: &Tensor<f64>| Tensor::new(t.shape.clone(), t.data.iter().map(near).collect());
    params.iter().map(|(name, t)| (name.clone(), round(t))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// In bf16 too, weights and cache: the model is as near to the reference as rounding lets it; a batch is its prompts one by one and decoding through the cache is the whole
    /// forward pass, bit for bit, since every sum runs in the same order whatever else is computed with it; and threads
    /// change nothing.
    #[test]
    fn random_models_in_bf16(
        spec in testing::specs(), seed in 0u64..1000, fused in 0usize..2, cut in 1usize..12,
    ) {
        let params = rounded(&random_params::<f64>(&spec, seed));
        let model = |jobs| load_with(&spec, &params, &rules()[fused], false, WeightType::Bf16, Engine::Compiled, jobs);
        let (model, single) = (model(2), model(1));
        let id = |i: u64| ((seed + 5 * i * i + i) % spec.vocab) as u32;
        let prompts: Vec<Vec<u32>> = [12, 1, 7].iter().map(|n| (0..*n).map(|i| id(i + n)).collect()).collect();
        let lists: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let whole = all_logits(&model, &lists);
        let expected = Expected::new(&spec, &params, &prompts, Operands::Bf16, seed);
        let (d, bound) = (noise::apart(&wide(&whole), &expected.rows), expected.bound());
        prop_assert!(d <= bound, "{d} from the reference, bound {bound}");
        prop_assert_eq!(&whole, &all_logits(&single, &lists), "one thread against two");
        let alone: Vec<Vec<f32>> = lists.iter().flat_map(|prompt| all_logits(&model, &[prompt])).collect();
        prop_assert_eq!(&whole, &alone, "a batch against one by one");
        let mut session = model.session(1, 12).expect("room");
        let mut found = vec![session.prefill(&[&lists[0][..cut]]).expect("runs").row(0).to_vec()];
        for at in cut..12 {
            found.push(session.decode(&lists[0][at..=at]).expect("runs").row(0).to_vec());
        }
        prop_assert_eq!(&found[..], &whole[cut - 1..12], "through the cache against the whole");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Fused is unfused, folded is kept, a batch is its prompts one by one, and decoding through the cache is the whole
    /// forward pass: of the programs that the passes make.
    #[test]
    fn passes_keep_what_a_model_computes(
        spec in testing::specs(), seed in 0u64..1000, fusion in fusions(), fold in any::<bool>(), cut in 1usize..12,
    ) {
        let params = random_params::<f64>(&spec, seed);
        let mup = if fold { Mup::Fold } else { Mup::Keep };
        let model = through_passes(&spec, &params, mup, &fusion);
        let id = |i: u64| ((seed + 5 * i * i + i) % spec.vocab) as u32;
        let prompts: Vec<Vec<u32>> = [12, 1, 7].iter().map(|n| (0..*n).map(|i| id(i + n)).collect()).collect();
        let lists: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let whole = all_logits(&model, &lists);
        let plain = all_logits(&through_passes(&spec, &params, Mup::Keep, &Fusion::Off), &lists);
        let expected = Expected::new(&spec, &params, &prompts, Operands::F32, seed);
        let (d, bound) = (noise::apart(&wide(&whole), &expected.rows), expected.bound());
        prop_assert!(d <= bound, "{fusion:?}, {mup:?} against the reference: {d}, bound {bound}");
        let d = noise::apart(&wide(&whole), &wide(&plain));
        prop_assert!(d <= 2.0 * bound, "{fusion:?}, {mup:?} against neither: {d}, bound {bound} of each");
        let alone: Vec<Vec<f32>> = lists.iter().flat_map(|prompt| all_logits(&model, &[prompt])).collect();
        prop_assert_eq!(&whole, &alone, "a batch against one by one");
        let ends = [11, 12, 19];
        let mut session = model.session(3, 12).expect("room");
        let last = session.prefill(&lists).expect("runs");
        let last: Vec<Vec<f32>> = (0..last.rows()).map(|row| last.row(row).to_vec()).collect();
        let wanted: Vec<Vec<f32>> = ends.iter().map(|row| whole[*row].clone()).collect();
        prop_assert_eq!(&last, &wanted, "the last token's logits against all");
        let mut session = model.session(1, 12).expect("room");
        let mut found = vec![session.prefill(&[&lists[0][..cut]]).expect("runs").row(0).to_vec()];
        for at in cut..12 {
            found.push(session.decode(&lists[0][at..=at]).expect("runs").row(0).to_vec());
        }
        prop_assert_eq!(&found[..], &whole[cut - 1..12], "through the cache against the whole");
    }
}

/// Three layers of gated squared ReLU with nothing that normalises behind them.
fn unnormalised() -> ModelSpec {
    let mut spec = lapidary_models::builtin("amber").expect("a built-in model");
    (spec.vocab, spec.vocab_padded_to, spec.d_model, spec.n_layers, spec.d_ff) = (15, None, 8, 3, 24);
    (spec.n_heads, spec.n_kv_heads, spec.head_dim, spec.max_seq) = (2, 2, 4, 12);
    (spec.norm.final_norm, spec.mlp.act, spec.pos) = (false, Activation::Relu2, Position::None);
    (spec.tokens.bos, spec.tokens.eos, spec.tokens.pad) = (None, Some(14), None);
    spec
}

/// A value on its way, and how far the program is from the exact reference and from the reference whose operands are
/// rounded to bf16, relative to the largest element of the row.
#[derive(Debug)]
struct Stage {
    name: String,
    exact: f64,
    rounded: f64,
}

fn stages(spec: &ModelSpec, model: &Model, params: &Params<f64>, ids: &[u32]) -> Vec<Stage> {
    let [exact, rounded] = noise::stages(spec, params, ids);
    let mut stages = Vec::new();
    let see = &mut |o: Observation| {
        let name = o.layer.map_or(o.value.to_string(), |layer| format!("layers.{layer}.{}", o.value));
        let (Some(exact), Some(rounded)) = (exact.get(&name), rounded.get(&name)) else { return };
        // Masked scores are infinite, and softmax comes next. The program has scores by row, the reference by head.
        let rows = |values: &[f64]| match o.value {
            "attn.scores" | "attn.scale" | "attn.softmax" => by_row(values, o.rows, spec.n_heads as usize),
            _ => values.chunks(o.width).map(<[f64]>::to_vec).collect(),
        };
        let found: Vec<Vec<f32>> =
            o.data.chunks(o.pitch).take(o.rows).map(|x| x[..o.width].to_vec()).collect();
        let off = |reference: &[f64]| noise::apart(&wide(&found), &rows(reference));
        if !o.value.ends_with("mask") {
            stages.push(Stage { exact: off(exact), rounded: off(rounded), name });
        }
    };
    let mut session = model.session(1, ids.len()).expect("room");
    session.watch(&[ids], Which::All, see).expect("runs");
    stages
}

/// `[heads][rows][keys]` as `[rows][heads and keys]`.
fn by_row(values: &[f64], rows: usize, heads: usize) -> Vec<Vec<f64>> {
    let keys = values.len() / rows / heads;
    let row = |row: usize| (0..heads).flat_map(move |head| &values[(head * rows + row) * keys..][..keys]);
    (0..rows).map(|at| row(at).copied().collect()).collect()
}

/// Why logits in bf16 can be a tenth off: of 600 such models half are off by more than 2 %, and one in fifty by 10 to 69 %.
///
/// The program is the reference with its operands rounded to the nearest bf16, at every value of every layer: the two
/// differ by f32 (1e-7 here), unless f32 carries a number over a border of rounding, which in 600 models moved logits by
/// 0.8 % at most. All the rest is what rounding does to the model. One rounding is up to 2^-8 = 0.4 % and leaves the first
/// queries, keys and values 0.3 to 0.4 % off. A square doubles a relative error and the gate adds that of the other half:
/// `mlp.glu` is two to three times as far off as `mlp.gate`. `mlp.down` adds it to a residual that nothing normalises, where
/// the elements that were squared outweigh the rest, and the next layer's norm passes the relative error on as it is. So
/// layers multiply it: 0.3 % at first, 1.1, 2.1 and 7.1 % behind the layers, 11 % after the head, whose sums cancel.
#[test]
fn bf16_is_off_by_what_rounding_its_operands_does() {
    let (spec, seed) = (unnormalised(), 412);
    let ids: Vec<u32> = (0..12).map(|i| (5 * i * i + i) % 15).collect();
    let params = rounded(&random_params::<f64>(&spec, seed));
    let model = load_with(&spec, &params, &Rules::none(), false, WeightType::Bf16, Engine::Compiled, 1);
    let stages = stages(&spec, &model, &params, &ids);
    let at =
        |name: &str| stages.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("{stages:#?}")).exact;
    assert_eq!(stages.len(), 2 + 3 * 17, "{stages:#?}");
    for Stage { name, exact, rounded } in &stages {
        println!("{name:24} {exact:.1e} {rounded:.1e}");
        assert!(*rounded <= 1e-6 + exact / 4.0, "{name}: {rounded} where rounding alone is {exact}");
    }
    assert!(at("layers.0.attn.q") < 1.0 / 256.0 && at("head") > 0.1);
    for layer in 0..3 {
        let (gate, glu) = (at(&format!("layers.{layer}.mlp.gate")), at(&format!("layers.{layer}.mlp.glu")));
        assert!(glu > 1.5 * gate, "layer {layer}: {gate} before the square and the gate, {glu} after");
    }
}

#[test]
fn stored_models_agree() {
    for name in STORED {
        let stored = Stored::open(name);
        let params = stored.params::<f64>(&stored.spec);
        let ids: Vec<&[u32]> = stored.ids.iter().map(Vec::as_slice).collect();
        let vocab = stored.spec.vocab as usize;
        for (rules, folded, engine) in [
            (Rules::none(), false, Engine::Interpreted),
            (Rules::none(), true, Engine::Compiled),
            (Rules::all(), false, Engine::Compiled),
            (Rules::all(), true, Engine::Compiled),
            (Rules::all(), true, Engine::Interpreted),
        ] {
            let model = load(&stored.spec, &params, &rules, folded, WeightType::F32, engine);
            let mut session = model.session(ids.len(), ids[0].len()).expect("room");
            let mut hidden: BTreeMap<String, Vec<f32>> = BTreeMap::new();
            let logits = session
                .watch(&ids, Which::All, &mut |o| {
                    let rows = (0..o.rows).flat_map(|r| o.data[r * o.pitch..][..o.width].iter().copied());
                    let name = match o.layer {
                        Some(layer) if o.value == "mlp.residual" => format!("hidden.{}", layer + 1),
                        None if o.value.starts_with("final_norm") => "final_norm".into(),
                        None if o.value.starts_with("embed") => "hidden.0".into(),
                        _ => return,
                    };
                    hidden.insert(name, rows.collect());
                })
                .expect("runs");
            let expected = &stored.expected["logits"];
            let mut worst = 0f64;
            for row in 0..logits.rows() {
                for (a, b) in logits.row(row).iter().zip(&expected.data[row * vocab..]) {
                    worst = worst.max((f64::from(*a) - b).abs());
                }
            }
            println!(
                "{name} {rules:?} folded {folded} {engine:?}: logits {worst:.2e}, kernels {:?}",
                model.kernels()
            );
            assert!(worst < 2e-4);
            if !folded {
                for (name, found) in &hidden {
                    let Some(t) = stored.expected.get(name) else { continue };
                    // The last stored hidden state may be the normalised one.
                    let worst =
                        found.iter().zip(&t.data).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
                    println!("   {name} {worst:.2e}");
                }
            }
            let greedy = stored.json("greedy.json");
            for case in
                greedy["cases"].as_array().or_else(|| greedy.as_array()).unwrap_or_else(|| panic!("{greedy}"))
            {
                let list = |key: &str| -> Vec<u32> {
                    case[key]
                        .as_array()
                        .unwrap_or_else(|| panic!("{case}"))
                        .iter()
                        .map(|x| x.as_u64().unwrap() as u32)
                        .collect()
                };
                let (prompt, expected) = (list("prompt"), list("continuation"));
                let mut session = model.session(1, prompt.len() + expected.len()).expect("room");
                let ask = Generation { max_new: expected.len(), stop: vec![], sampling: Sampling::GREEDY };
                let made = generate(&mut session, &[&prompt], &ask, |_, _| {}).expect("runs");
                assert_eq!(made[0].0, expected, "{name}");
            }
        }
        let bf16 = load(&stored.spec, &params, &Rules::all(), true, WeightType::Bf16, Engine::Compiled);
        let mut session = bf16.session(ids.len(), ids[0].len()).expect("room");
        let logits = session.extend(&ids, Which::All).expect("runs");
        let expected = &stored.expected["logits"].data;
        let same = (0..logits.rows()).filter(|r| {
            let best = |row: &[f64]| (0..vocab).max_by(|a, b| row[*a].total_cmp(&row[*b]));
            let found: Vec<f64> = logits.row(*r).iter().map(|x| f64::from(*x)).collect();
            best(&found) == best(&expected[r * vocab..][..vocab])
        });
        let share = same.count() as f64 / logits.rows() as f64;
        println!("{name} bf16: {share}");
        assert!(share >= 0.9);
    }
}

#[test]
fn folded_params_are_the_folded_weights() {
    let stored = Stored::open("crystal-tiny");
    let fold = mup::inference_fold(&stored.spec).expect("folds");
    let params = stored.params::<f64>(&stored.spec);
    assert_ne!(fold_params(&params, &fold), params);
}
