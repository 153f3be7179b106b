//! The report page: the same figures as the document, opened in a headless Chromium without a network.

use crate::support;
use lapidary_hardware::builtin::machine;
use lapidary_planner::{
    Degrees, Physical, Pins, PlanDocument, PlanRequest, Timeline, plan, report, timeline,
};
use std::path::PathBuf;
use std::process::Command;

/// A plan with a pipeline, and its time line.
fn planned() -> (PlanDocument, Timeline) {
    let (model, cluster) = (support::amber(), machine("amber-cluster").unwrap());
    let pins = Pins::parse("pp=4,tp=2,mb=1,chunks=1").unwrap();
    let request = PlanRequest { global_batch: Some(896), pins, ..PlanRequest::new(&model, &cluster) };
    let document = plan(&request, &Physical::default()).unwrap();
    let Degrees::Gpu(degrees) = document.chosen().unwrap().degrees else { panic!("a GPU plan") };
    let line = timeline(&request, &Physical::default(), &degrees).unwrap().unwrap();
    (document, line)
}

#[test]
fn a_time_line_is_the_step_that_is_priced() {
    let (document, line) = planned();
    let chosen = document.chosen().unwrap();
    assert_eq!(Some(line.step_s), chosen.step_time_s);
    assert_eq!(line.passes.len() as u64, 2 * 4 * line.micro_batches);
    let whole = line.passes_s + line.once_s.values().sum::<f64>();
    assert!((whole / line.step_s - 1.0).abs() < 1e-9, "{whole} {}", line.step_s);
    assert_eq!(line.stages.iter().map(|stage| stage.layers).sum::<u64>(), 32);
    // Earlier stages hold more micro-batches.
    let kept = |stage: usize| line.stages[stage].memory_bytes["activations"];
    assert!(kept(0) > kept(2), "{} {}", kept(0), kept(2));
    let trace = line.to_chrome();
    let events = trace["traceEvents"].as_array().unwrap();
    let passes = events.iter().filter(|event| event["cat"] == "forward" || event["cat"] == "backward");
    assert_eq!(passes.count(), line.passes.len());
    let end = events.iter().filter_map(|event| Some(event["ts"].as_f64()? + event["dur"].as_f64()?));
    assert!((end.fold(0.0, f64::max) / 1e6 / whole - 1.0).abs() < 1e-9);
}

#[test]
fn a_page_holds_its_document_and_nothing_from_outside() {
    let (mut document, line) = planned();
    document.warnings.push("a </script> in a text <!-- does no harm".into());
    let page = report::page(&document, Some(&line)).unwrap();
    assert!(!page.contains("{{"), "every mark is filled in");
    assert!(!page.contains("http://") || !page.replace("http://www.w3.org/2000/svg", "").contains("http://"));
    assert_eq!(page.matches("</script>").count(), 2);
    let data = page.split_once("id=\"data\">").unwrap().1.split_once("</script>").unwrap().0;
    let data: serde_json::Value = serde_json::from_str(data).unwrap();
    assert_eq!(data["plan"], serde_json::to_value(&document).unwrap());
    assert_eq!(data["timeline"], serde_json::to_value(&line).unwrap());
}

/// `make setup` installs it; without it the page is only read, above.
fn chromium() -> Option<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .flat_map(|folder| names.map(|name| folder.join(name)))
        .find(|file| file.is_file())
}

#[test]
fn a_page_opens_without_an_error_and_shows_the_figures_of_its_document() {
    let Some(browser) = chromium() else {
        eprintln!("no Chromium on the path: the page is not opened");
        return;
    };
    let (document, line) = planned();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plan.html");
    std::fs::write(&file, report::page(&document, Some(&line)).unwrap()).unwrap();
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"])
        .arg("--host-resolver-rules=MAP * ~NOTFOUND")
        .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
        .arg(format!("file://{}", file.display()))
        .output()
        .unwrap();
    let dom = String::from_utf8_lossy(&output.stdout);
    assert!(dom.contains("data-ready=\"1\""), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(dom.contains("data-errors=\"0\""));
    for candidate in &document.candidates {
        let shown = |key: &str| cell(&dom, &candidate.name, key);
        assert_eq!(shown("step_time_s"), candidate.step_time_s, "{}", candidate.name);
        assert_eq!(shown("tokens_per_s"), candidate.tokens_per_s, "{}", candidate.name);
        assert_eq!(shown("mfu"), candidate.mfu, "{}", candidate.name);
        assert_eq!(shown("memory_total_bytes"), Some(candidate.memory_total_bytes as f64));
    }
    assert!(dom.contains(&format!("data-passes=\"{}\"", line.passes.len())));
    let chosen = document.chosen().unwrap();
    for (term, seconds) in chosen.terms_s.iter().filter(|(_, seconds)| **seconds > 0.0) {
        assert_eq!(value(&dom, &format!("data-term=\"{term}\"")), Some(*seconds), "{term}");
    }
}

/// The figure of a plan that a cell shows.
fn cell(dom: &str, plan: &str, key: &str) -> Option<f64> {
    value(dom, &format!("data-plan=\"{plan}\" data-key=\"{key}\""))
}

/// The value that the element with these attributes carries.
fn value(dom: &str, attributes: &str) -> Option<f64> {
    let (_, rest) = dom.split_once(attributes)?;
    let tag = rest.split_once('>')?.0;
    tag.split_once("data-value=\"")?.1.split_once('"')?.0.parse().ok()
}
