//! What `compile` prints: what was fused, what runs, and how full the machine is.

use super::super::print_json;
use super::report::{Fusion, Report};
use super::{Job, name, training};
use crate::failure::Failure;
use crate::show;
use lapidary_passes::report::PipelineReport;
use std::time::Duration;

/// Prints the report as a text or as JSON, and the times with `--timing`.
pub fn print(
    job: &Job<'_>,
    report: &Report,
    passes: &PipelineReport,
    times: &[(String, Duration)],
) -> Result<(), Failure> {
    if job.args.json {
        return print_json(report);
    }
    println!(
        "{} ({} parameters) for {} on {}: {}, {} x {} tokens{}",
        report.model,
        show::count(report.parameters),
        name(job.args.target),
        report.machine,
        report.mode,
        report.batch,
        report.seq_len,
        if report.cached > 0 { format!(" after {}", report.cached) } else { String::new() },
    );
    for segment in report.recompute.iter().flat_map(|recompute| &recompute.segments) {
        let last = segment.first + segment.times.saturating_sub(1);
        println!(
            "recompute {} in layers {} to {last}: {}",
            segment.policy.name(),
            segment.first,
            segment.reason
        );
    }
    if let Some(fusion) = &report.fusion {
        print_fusion(fusion);
    }
    if let Some(kernels) = &report.kernels {
        print_kernels(kernels);
    }
    if let Some(placement) = &report.placement {
        print_placement(placement);
    }
    print_memory(report);
    if let Some(tunings) = &report.tunings {
        println!(
            "forms of {} kernels by measurements on {}, driver for CUDA {}",
            tunings.kernels, tunings.device, tunings.driver
        );
    }
    if let Some(answer) = &report.training {
        training::print(answer);
    }
    for warning in &report.warnings {
        println!("warning: {warning}");
    }
    if job.args.timing {
        print_times(passes, times);
    }
    println!("wrote {}", job.args.output.display());
    Ok(())
}

fn print_fusion(fusion: &Fusion) {
    let rows = fusion.regions.iter().map(|region| {
        vec![
            region.name.clone(),
            format!("{}x", region.times),
            region.anchor.to_string(),
            region.ops.join(" "),
            show::bytes(region.bytes_before),
            show::bytes(region.bytes_after),
        ]
    });
    println!(
        "\n{}",
        show::table(&["fused kernel", "runs", "anchor", "ops", "traffic before", "after"], &[1, 4, 5], rows)
    );
    let saved = 100.0 * (1.0 - fusion.bytes_after as f64 / fusion.bytes_before.max(1) as f64);
    println!(
        "memory traffic of one run: {} before fusion, {} after ({saved:.1} % less)",
        show::bytes(fusion.bytes_before),
        show::bytes(fusion.bytes_after)
    );
}

fn print_kernels(kernels: &serde_json::Value) {
    let number = |kernel: &serde_json::Value, key: &str| kernel[key].as_u64();
    let rows = kernels.as_array().into_iter().flatten().map(|kernel| {
        let text = |key: &str| kernel[key].as_str().unwrap_or_default().to_string();
        let some = |key: &str| number(kernel, key).map_or("-".to_string(), |n| n.to_string());
        vec![
            text("name"),
            text("kind"),
            some("registers"),
            number(kernel, "shared_bytes").map_or("-".into(), show::bytes),
            some("spill_bytes"),
            number(kernel, "flops").map_or("-".into(), show::flops),
            number(kernel, "bytes").map_or("-".into(), show::bytes),
        ]
    });
    let header = ["kernel", "kind", "registers", "shared", "spill bytes", "work", "traffic"];
    println!("\n{}", show::table(&header, &[2, 3, 4, 5, 6], rows));
}

fn print_placement(placement: &serde_json::Value) {
    let lines = placement["summary"].as_array().into_iter().flatten().filter_map(|line| line.as_str());
    println!();
    lines.for_each(|line| println!("{line}"));
}

fn print_memory(report: &Report) {
    let total: u64 = report.memory_bytes.values().sum();
    if total == 0 {
        return;
    }
    let parts = report.memory_bytes.iter().filter(|(_, bytes)| **bytes > 0);
    let parts: Vec<String> = parts.map(|(class, bytes)| format!("{class} {}", show::bytes(*bytes))).collect();
    let capacity = report.memory_capacity_bytes.map(|bytes| format!(" of {}", show::bytes(bytes)));
    println!(
        "\ndevice memory: {}{} ({})",
        show::bytes(total),
        capacity.unwrap_or_default(),
        parts.join(", ")
    );
}

fn print_times(passes: &PipelineReport, times: &[(String, Duration)]) {
    let row =
        |name: &str, time: Duration| vec![name.to_string(), format!("{:.2} ms", time.as_secs_f64() * 1e3)];
    let rows = times.iter().map(|(name, time)| row(name, *time));
    let passes = passes.passes.iter().map(|pass| row(&format!("  {}", pass.name), pass.time));
    println!("\n{}", show::table(&["stage", "time"], &[1], rows.chain(passes)));
}
