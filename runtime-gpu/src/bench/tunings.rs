//! What was measured to be the fastest form of each product, on one kind of GPU with one driver: kept in a file on that
//! machine, and read by whatever compiles for it.
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The `schema` field of every document.
pub const SCHEMA: &str = "lapidary/gpu-tunings";
/// Version of the document's form.
pub const VERSION: u32 = 1;

/// Measured forms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tunings {
    /// [`SCHEMA`].
    pub schema: String,
    /// [`VERSION`].
    pub version: u32,
    /// Product name of the GPU.
    pub device: String,
    /// Version of the driver's interface.
    pub driver: String,
    /// Seconds of every form that was measured, in the median, by product and form.
    pub median_s: BTreeMap<String, BTreeMap<String, f64>>,
}

impl Tunings {
    /// None yet.
    pub fn new(device: &str, driver: &str) -> Tunings {
        let (schema, version) = (SCHEMA.into(), VERSION);
        Tunings { schema, version, device: device.into(), driver: driver.into(), median_s: BTreeMap::new() }
    }

    /// Reads a document.
    ///
    /// # Errors
    /// A sentence about what it is instead.
    pub fn read(text: &str) -> Result<Tunings, String> {
        let tunings: Tunings = serde_json::from_str(text).map_err(|error| error.to_string())?;
        match (tunings.schema.as_str(), tunings.version) == (SCHEMA, VERSION) {
            true => Ok(tunings),
            false => Err(format!(
                "is {} version {}, not {SCHEMA} version {VERSION}",
                tunings.schema, tunings.version
            )),
        }
    }

    /// Adds a form's time, in place of an earlier one.
    pub fn note(&mut self, product: &str, form: &str, median_s: f64) {
        self.median_s.entry(product.into()).or_default().insert(form.into(), median_s);
    }

    /// Takes over what another run measured on the same GPU and driver.
    pub fn merge(&mut self, newer: Tunings) {
        for (product, forms) in newer.median_s {
            self.median_s.entry(product).or_default().extend(forms);
        }
    }

    /// The fastest form of each product.
    pub fn fastest(&self) -> BTreeMap<String, String> {
        let best = |forms: &BTreeMap<String, f64>| {
            forms.iter().min_by(|a, b| a.1.total_cmp(b.1)).map(|(form, _)| form.clone())
        };
        self.median_s.iter().filter_map(|(product, forms)| Some((product.clone(), best(forms)?))).collect()
    }

    /// A file name for this GPU and driver.
    pub fn file_name(&self) -> String {
        let plain = |text: &str| -> String {
            text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect()
        };
        format!("tunings-{}-{}.json", plain(&self.device), plain(&self.driver))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_form_is_found_again_in_the_document() {
        let mut tunings = Tunings::new("NVIDIA A100/80GB", "12.9");
        tunings.note("p", "tiles-64x64", 2.0);
        tunings.note("p", "library", 3.0);
        let mut newer = Tunings::new("NVIDIA A100/80GB", "12.9");
        newer.note("p", "library", 1.0);
        tunings.merge(newer);
        let read = Tunings::read(&serde_json::to_string(&tunings).unwrap()).unwrap();
        assert_eq!(read.fastest(), BTreeMap::from([("p".to_string(), "library".to_string())]));
        assert_eq!(read.file_name(), "tunings-NVIDIA-A100-80GB-12.9.json");
        let other = serde_json::to_string(&Tunings { version: 2, ..read }).unwrap();
        assert!(Tunings::read(&other).unwrap_err().contains("version 2"));
    }
}
