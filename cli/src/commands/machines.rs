//! `lapidary machines`: what is built in, and every number with its unit and source.

use super::print_json;
use crate::args::Machines;
use crate::failure::{Exit, Failure};
use crate::{input, show};
use lapidary_hardware::{HardwareSpec, builtin};

/// Runs the verb.
pub fn run(verb: Machines) -> Result<(), Failure> {
    match verb {
        Machines::List { json } => {
            let machines = built_in()?;
            if json { list_json(&machines) } else { list(&machines) }
        }
        Machines::Show { name, json } => {
            let machine = input::machine(&name)?;
            match json {
                true => print_json(
                    &serde_json::json!({"schema": "lapidary/machine", "version": 1, "machine": machine}),
                ),
                false => print(&machine),
            }
        }
    }
}

fn built_in() -> Result<Vec<HardwareSpec>, Failure> {
    builtin::names()
        .into_iter()
        .map(|name| builtin::machine(name).map_err(|error| Failure::new(Exit::Internal, error.to_string())))
        .collect()
}

fn list_json(machines: &[HardwareSpec]) -> Result<(), Failure> {
    let rows = machines.iter().map(|m| {
        serde_json::json!({"name": m.name, "description": m.description, "devices": m.devices(),
                           "device": m.device.product(), "memory_bytes_per_device": m.device.memory().0 as u64})
    });
    let rows: Vec<_> = rows.collect();
    print_json(&serde_json::json!({"schema": "lapidary/machines", "version": 1, "machines": rows}))
}

fn list(machines: &[HardwareSpec]) -> Result<(), Failure> {
    let rows = machines.iter().map(|m| {
        let memory = show::bytes(m.device.memory().0 as u64);
        vec![
            m.name.clone(),
            m.devices().to_string(),
            m.device.product().into(),
            memory,
            m.description.clone(),
        ]
    });
    println!("{}", show::table(&["name", "devices", "device", "memory each", "what it is"], &[1, 3], rows));
    Ok(())
}

fn print(machine: &HardwareSpec) -> Result<(), Failure> {
    println!("{}: {}\n", machine.name, machine.description);
    let rows = machine.facts.iter().map(|fact| {
        vec![
            fact.key.clone(),
            fact.value.iter().map(f64::to_string).collect::<Vec<_>>().join(", "),
            fact.unit.clone(),
            fact.source.clone(),
        ]
    });
    println!("{}", show::table(&["key", "value", "unit", "source"], &[1], rows));
    Ok(())
}
