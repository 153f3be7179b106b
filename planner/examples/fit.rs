//! Fits the constants of `planner/physics.toml` and the number of each software stack to a table of published runs,
//! and prints them: `cargo run --release -p lapidary-planner --example fit -- published.csv`.
//!
//! The fit starts from the constants that stand and moves one only for what it gains, so running it again changes nothing. With `rows` behind the path it
//! prints each scored row with its memory and terms instead, with `left-out` what each group's error is when it is left out and the
//! error bars of plans.

use lapidary_planner::accuracy::{Constants, Document, LeftOut, Samples, read, score};

fn main() {
    let path = std::env::args().nth(1).expect("the path of a table");
    let text = std::fs::read_to_string(&path).expect("a table that can be read");
    let rows = read(&text, &path).unwrap_or_else(|error| panic!("{error}"));
    let samples = Samples::new(&rows);
    let mut constants = Constants::builtin();
    let show = |constants: &Constants| {
        let document =
            Document::new("a100-training", score(&rows, &constants.physics, |stack| constants.stack(stack)));
        println!(
            "mean of groups {:.2} %, of rows {:.2} %, 95th percentile {:.2} %, covered {:.1} %, memory {:.2} %, wrong fits {} {}",
            document.mean_of_groups_pct,
            document.mape_pct,
            document.p95_pct,
            document.covered_pct,
            document.memory.mape_pct,
            document.fits.wrong_fits,
            document.fits.wrong_does_not_fit,
        );
        document
    };
    let document = show(&constants);
    match std::env::args().nth(2).as_deref() {
        Some("rows") => {
            for row in document.rows.iter().filter(|row| row.scored) {
                let terms: Vec<String> =
                    row.terms_s.iter().map(|(name, s)| format!("{name}={s:.4}")).collect();
                println!(
                    "{},{},{},{:.4},{:.1},{:.1} GiB,{}",
                    row.group,
                    row.id,
                    row.measured,
                    row.predicted,
                    row.error_pct,
                    row.held_gib,
                    terms.join(";")
                );
            }
            return;
        }
        Some("left-out") => {
            let without = samples.without_each(&constants);
            let left_out = samples.left_out(&constants, &without);
            let mean =
                |pick: fn(&LeftOut) -> f64| left_out.values().map(pick).sum::<f64>() / left_out.len() as f64;
            for (group, both) in &left_out {
                let (fitted, alone, covered) = (both.fitted_pct, both.left_out_pct, both.covered_pct);
                println!("# {group:16} {fitted:5.1} {alone:5.1}, covered {covered:5.1}");
            }
            let (alone, covered) = (mean(|both| both.left_out_pct), mean(|both| both.covered_pct));
            println!("# mean left out {alone:.2} %, covered {covered:.1} %\n");
            for (kind, bar) in samples.bars(&constants, &without) {
                let (pct, runs, groups) = (bar.nine_of_ten_pct, bar.runs, bar.groups);
                println!("[{kind}]\nnine_of_ten_pct = {pct:?}\nruns = {runs}\ngroups = {groups}\n");
            }
            return;
        }
        _ => {}
    }
    constants = samples.fit(&constants, None);
    let document = show(&constants);
    for (name, errors) in &document.groups {
        println!(
            "{name:16} {:4} mean {:5.1} bias {:5.1} 95th {:5.1}",
            errors.rows, errors.mape_pct, errors.bias_pct, errors.p95_pct
        );
    }
    for (name, constant) in lapidary_planner::step::physics::table() {
        let value = constants.physics.get(&name).unwrap_or(constant.value);
        if constant.range.is_some() {
            println!("{name} = {value:.4e}");
        }
    }
    for (name, value) in &constants.paces {
        println!("{name} = {value:.4}");
    }
}
