//! What is said to fit where nothing does: without which pin, with which batch.

use crate::support;
use lapidary_hardware::builtin::machine;
use lapidary_planner::{Physical, Pins, PlanError, PlanRequest, plan};

#[test]
fn pins_that_no_plan_has_are_told_which_of_them_is_in_the_way() {
    let (model, dgx) = (support::amber(), machine("dgx-a100").unwrap());
    let nearest = |pins: &str| {
        let pins = Pins::parse(pins).unwrap();
        let request = PlanRequest {
            devices: Some(64),
            global_batch: Some(512),
            pins,
            ..PlanRequest::new(&model, &dgx)
        };
        match plan(&request, &Physical::default()) {
            Err(PlanError::Empty { nearest, .. }) => nearest.expect("a plan fits without the pins"),
            other => panic!("{other:?}"),
        }
    };
    let found = nearest("tp=2,pp=2,mb=3");
    assert!(found.starts_with("tp2pp2dp16-mb") && found.ends_with(" without micro-batch=3"), "{found}");
    let found = nearest("mb=3,dp=7");
    assert!(found.ends_with(" without the pins"), "{found}");
}

#[test]
fn a_batch_that_does_not_divide_is_told_the_nearest_that_does() {
    let (model, dgx) = (support::gpt3(), machine("dgx-a100").unwrap());
    let request =
        PlanRequest { devices: Some(1000), global_batch: Some(1024), ..PlanRequest::new(&model, &dgx) };
    let fits = plan(&request, &Physical::default()).unwrap().nearest.unwrap().would_fit;
    assert!(fits[0].starts_with("a global batch of 1000: tp"), "{fits:?}");
}
