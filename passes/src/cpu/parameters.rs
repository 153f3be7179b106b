//! Parameters as the steps read them: matrices of one left operand packed together, tables, vectors; each once.

use crate::cpu::HostParam;
use lapidary_runtime_cpu::program::{Form, Parameter, ParameterId, Segment, WeightType};

/// The parameters of a program while it is emitted.
pub struct Parameters {
    dtype: WeightType,
    /// In order of first use.
    pub list: Vec<Parameter>,
}

impl Parameters {
    /// None yet; matrices and tables will have this element type.
    pub fn new(dtype: WeightType) -> Parameters {
        Parameters { dtype, list: Vec::new() }
    }

    /// The index of a parameter, which is added if it is new.
    fn intern(&mut self, name: String, per_layer: bool, form: Form) -> ParameterId {
        if let Some(at) = self.list.iter().position(|p| p.form == form) {
            return at;
        }
        self.list.push(Parameter { name, per_layer, form });
        self.list.len() - 1
    }

    /// Matrices `[rows, columns]` that share their left operand.
    pub fn matrix(&mut self, columns: u64, sources: &[(HostParam, u64)]) -> ParameterId {
        let segments = sources.iter().map(|(p, rows)| segment(p, *rows)).collect();
        let name = sources.iter().map(|(p, _)| short(&p.name)).collect::<Vec<_>>().join("+");
        let per_layer = sources.iter().any(|(p, _)| p.name.contains('*'));
        self.intern(name, per_layer, Form::Matrix { dtype: self.dtype, columns, segments })
    }

    /// A table whose rows are looked up.
    pub fn table(&mut self, columns: u64, source: &HostParam, rows: u64) -> ParameterId {
        let form = Form::Table { dtype: self.dtype, columns, segment: segment(source, rows) };
        self.intern(short(&source.name), source.name.contains('*'), form)
    }

    /// A bias or the weight of a norm.
    pub fn vector(&mut self, source: &HostParam, length: u64) -> ParameterId {
        let form = Form::Vector { tensor: source.name.clone(), length, scale: source.scale };
        self.intern(source.name.clone(), source.name.contains('*'), form)
    }
}

fn segment(source: &HostParam, rows: u64) -> Segment {
    Segment { tensor: source.name.clone(), rows, scale: source.scale }
}

/// `layers.*.attn.q.weight` as `attn.q`.
fn short(name: &str) -> String {
    name.trim_start_matches("layers.*.").trim_end_matches(".weight").to_string()
}
