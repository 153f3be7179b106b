//! The index of a sharded checkpoint: which file holds which tensor.

use crate::fault::{Fault, FaultKind, Faults, printable};
use crate::json::Json;
use std::collections::BTreeMap;

/// `model.safetensors.index.json` or `pytorch_model.bin.index.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// Name of the index file, for messages.
    pub name: String,
    /// Tensor name to file name: a plain name in the index's own folder.
    pub files: BTreeMap<String, String>,
    /// What the index says the tensors take together.
    pub total_bytes: Option<u64>,
}

impl Index {
    /// Reads an index. `name` is what messages call it.
    ///
    /// # Errors
    /// Every fault: no JSON, no `weight_map`, a tensor that stands twice, a file that is not a plain name.
    pub fn parse(text: &str, name: &str) -> Result<Index, Faults> {
        let fault = |message: String| Fault::new(FaultKind::Index, name, message);
        let json: Json = serde_json::from_str(text).map_err(|error| fault(format!("not JSON: {error}")))?;
        let Some(Json::Table(rows)) = json.get("weight_map") else {
            let message = "expected an object `weight_map` of tensor names to file names";
            return Err(fault(message.into()).into());
        };
        let mut index = Index { name: name.into(), files: BTreeMap::new(), total_bytes: total(&json) };
        let mut faults = Vec::new();
        for (tensor, file) in rows {
            if let Err(fault) = index.add(tensor, file) {
                faults.push(fault);
            }
        }
        if rows.is_empty() {
            faults.push(fault("`weight_map` names no tensor".into()));
        }
        if faults.is_empty() { Ok(index) } else { Err(Faults { faults }) }
    }

    fn add(&mut self, tensor: &str, file: &Json) -> Result<(), Fault> {
        let fault = |message: String| Fault::new(FaultKind::Index, &self.name, message).tensor(tensor);
        let Json::Text(file) = file else {
            return Err(fault(format!("expected a file name, found {}", file.kind())));
        };
        if !is_plain(file) {
            let message = format!("`{}` points outside the folder of the index", printable(file));
            return Err(fault(message).hint("a shard lies beside its index"));
        }
        match self.files.insert(tensor.to_string(), file.clone()) {
            None => Ok(()),
            Some(_) => Err(fault("the name stands twice in the index".into())),
        }
    }

    /// The shards, in the order of their names.
    pub fn shards(&self) -> Vec<&str> {
        let mut shards: Vec<&str> = self.files.values().map(String::as_str).collect();
        shards.sort_unstable();
        shards.dedup();
        shards
    }
}

fn total(json: &Json) -> Option<u64> {
    match json.get("metadata")?.get("total_size")? {
        Json::Count(bytes) => Some(*bytes),
        // Some published indexes were written from a float.
        Json::Number(bytes) if *bytes >= 0.0 => Some(*bytes as u64),
        _ => None,
    }
}

/// One component of a path that stays where it is, under the rules of every system.
fn is_plain(file: &str) -> bool {
    let outside = |c: char| c == '/' || c == '\\' || c == ':' || c.is_control();
    !file.is_empty() && file != "." && file != ".." && !file.contains(outside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> String {
        Index::parse(text, "index.json").expect_err("a fault").to_string()
    }

    #[test]
    fn an_index_names_its_shards_once() {
        let text = r#"{"metadata": {"total_size": 12}, "weight_map": {"b": "2", "a": "1", "c": "2"}}"#;
        let index = Index::parse(text, "index.json").unwrap();
        assert_eq!(index.shards(), ["1", "2"]);
        assert_eq!(index.total_bytes, Some(12));
    }

    #[test]
    fn an_index_that_points_elsewhere_is_refused_with_every_place() {
        let text = r#"{"weight_map": {"a": "../x", "b": "/etc/passwd", "c": "..", "d": "ok", "e": "C:x",
            "f": "", "g": "sub\\x", "h": 3, "d": "again", "i": "x\u0000y"}}"#;
        let told = faults(text);
        for tensor in ["a", "b", "c", "e", "f", "g", "i"] {
            assert!(told.contains(&format!("tensor `{tensor}`: ")), "{tensor} in {told}");
        }
        assert_eq!(told.matches("points outside the folder").count(), 7, "{told}");
        assert!(told.contains("tensor `h`: expected a file name, found a whole number"), "{told}");
        assert!(told.contains("tensor `d`: the name stands twice"), "{told}");
    }

    #[test]
    fn what_is_not_an_index_is_told() {
        assert!(faults("[]").contains("weight_map"));
        assert!(faults("{").contains("not JSON"));
        assert!(faults(r#"{"weight_map": {}}"#).contains("names no tensor"));
        assert!(faults(r#"{"weight_map": 1}"#).contains("weight_map"));
    }
}
