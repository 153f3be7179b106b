//! Every built-in model on machines of every kind: an answer, and its assumptions have sources.

use crate::support;
use lapidary_hardware::builtin::machine;
use lapidary_models::builtin_names;
use lapidary_planner::{Physical, PlanRequest, plan};

#[test]
fn every_model_gets_a_plan_or_a_reason_on_every_kind_of_machine() {
    let machines =
        [("amber-cluster", None), ("dgx-a100", Some(64)), ("h200", None), ("cg1", None), ("wse3", None)];
    for (name, devices) in machines {
        let machine = machine(name).unwrap();
        for model in builtin_names() {
            let model = support::model(model);
            let request = PlanRequest { devices, ..PlanRequest::new(&model, &machine) };
            let document = plan(&request, &Physical::default()).unwrap();
            assert_eq!(document.chosen.is_none(), document.nearest.is_some(), "{} on {name}", model.name);
            assert_eq!(document.inputs.global_batch % document.inputs.devices, 0);
            assert!(document.assumptions.iter().all(|assumption| !assumption.source.is_empty()));
            if let Some(nearest) = document.nearest {
                assert!(!nearest.rejected_by.is_empty());
            }
        }
    }
}
