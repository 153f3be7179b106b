//! What is enforced between passes.

use lapidary_ir::{IrContext, Module, Op};
use lapidary_passes::pipeline::Step;
use lapidary_passes::registry::{PASSES, find};
use lapidary_passes::{Changed, Pass, PassCx, PassError, Pipeline, RunError, Watch, legal, run};
use std::sync::Arc;
use std::time::Duration;

const MODULE: &str = "func.func @main(%x: tensor<2x8xf32>) -> tensor<2x8xf32> {
  %y = nn.activation relu %x : tensor<2x8xf32>
  return %y : tensor<2x8xf32>
}";

/// A pass that does what the test wants.
struct Rogue(fn(Op<'_>));

impl Pass for Rogue {
    fn name(&self) -> &'static str {
        "fuse"
    }

    fn summary(&self) -> &'static str {
        "misbehave"
    }

    fn run(&self, module: Op<'_>, _: &PassCx) -> Result<Changed, PassError> {
        (self.0)(module);
        Ok(Changed::Yes)
    }
}

/// What comes of a rogue pass in the place of `fuse`.
fn outcome(act: fn(Op<'_>)) -> (Vec<String>, bool) {
    let cx = IrContext::new();
    let mut module = Module::parse(&cx, MODULE, "m.mlir").unwrap();
    let step = Step { row: find("fuse").unwrap(), text: "fuse".into(), pass: Some(Arc::new(Rogue(act))) };
    match run(&mut module, &Pipeline { steps: vec![step] }, Watch::default()) {
        Err(RunError::Pass { diagnostics, internal, .. }) => {
            (diagnostics.iter().map(ToString::to_string).collect(), internal)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_panic_in_a_pass_is_an_internal_fault() {
    let (said, internal) = outcome(|_| panic!("out of ideas"));
    assert!(internal && said[0].contains("out of ideas"), "{said:?}");
}

#[test]
fn a_module_that_a_pass_broke_is_an_internal_fault() {
    let (said, internal) = outcome(|module| {
        let op = module.walk().into_iter().find(|op| op.is("nn.activation")).unwrap();
        op.remove_attribute("fn");
    });
    assert!(internal && said[0].starts_with("m.mlir:2:8: error:"), "{said:?}");
}

#[test]
fn an_op_that_a_pass_should_not_leave_is_an_internal_fault() {
    let (said, internal) = outcome(|_| {});
    assert!(internal);
    assert_eq!(said, ["m.mlir:2:8: error: nn.activation is not legal outside a kernel after fuse"]);
}

#[test]
fn every_promise_belongs_to_a_pass() {
    assert!(legal::LEGAL.iter().all(|legal| PASSES.iter().any(|row| row.name == legal.after)));
}

#[test]
fn rows_and_passes_agree_on_names_and_summaries() {
    for row in PASSES {
        let pipeline = Pipeline::parse(row.name).unwrap();
        if let Some(pass) = &pipeline.steps[0].pass {
            assert_eq!((pass.name(), pass.summary()), (row.name, row.summary));
        }
    }
}

#[test]
fn time_is_what_passes_on_the_callers_clock() {
    let cx = IrContext::new();
    let mut module = Module::parse(&cx, MODULE, "m.mlir").unwrap();
    let ticks = std::cell::Cell::new(0);
    let clock = || {
        ticks.set(ticks.get() + 3);
        Duration::from_secs(ticks.get())
    };
    let watch = Watch { clock: Some(&clock), snapshots: true };
    let report = run(&mut module, &Pipeline::parse("cse,fuse").unwrap(), watch).unwrap();
    let times: Vec<u64> = report.passes.iter().map(|pass| pass.time.as_secs()).collect();
    assert_eq!(times, [3, 3]);
    let after: Vec<&str> = report.snapshots.iter().map(|snapshot| snapshot.after.as_str()).collect();
    assert_eq!(after, ["import", "cse", "fuse"]);
}
