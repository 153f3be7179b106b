//! `--mode`: what the graph computes, and where the weights are on a wafer.

use crate::args::{Compile, CompileMode, Target};
use crate::failure::{Exit, Failure};
use lapidary_models::{Dims, Graph, GraphError, Mode, ModelSpec};

/// The words of `--mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Modes {
    /// What the graph computes; the target's usual where absent.
    pub graph: Option<Mode>,
    /// Where a wafer's weights are; beside it where absent.
    pub wafer: Option<crate::wafer::Mode>,
}

impl Modes {
    /// Reads the words.
    ///
    /// # Errors
    /// Exit 2 for two words of a kind and for words of another target, 5 for what is not placed.
    pub fn of(args: &Compile) -> Result<Modes, Failure> {
        let mut modes = Modes::default();
        for word in &args.mode {
            let twice = match word {
                CompileMode::Forward => modes.graph.replace(Mode::Forward).is_some(),
                CompileMode::Prefill => modes.graph.replace(Mode::Prefill).is_some(),
                CompileMode::Decode => modes.graph.replace(Mode::Decode).is_some(),
                CompileMode::WeightStreaming => {
                    modes.wafer.replace(crate::wafer::Mode::WeightStreaming).is_some()
                }
                CompileMode::LayerPipelined => {
                    modes.wafer.replace(crate::wafer::Mode::LayerPipelined).is_some()
                }
            };
            if twice {
                return Err(usage("two words of one kind")
                    .help("one of forward, prefill, decode and one of weight-streaming, layer-pipelined"));
            }
        }
        modes.check(args)?;
        Ok(modes)
    }

    fn check(self, args: &Compile) -> Result<(), Failure> {
        let mode = self.wafer.map_or("", crate::wafer::Mode::name);
        match (self.wafer.is_some(), self.resident()) {
            (true, _) if args.target != Target::Cg1Sim => {
                Err(usage(&format!("{mode} is a mode of wafers")).help("compile with --target cg1-sim"))
            }
            _ if args.train && self.graph.is_some() => {
                Err(usage("--train compiles a training step").help("leave forward, prefill and decode away"))
            }
            (_, true) if args.train => {
                let what = "--mode layer-pipelined: a training step is placed for streamed weights only";
                Err(Failure::new(Exit::Unsupported, what)
                    .help("`lapidary plan MODEL --machine cg1 --pin mode=layer-pipelined` prices such plans"))
            }
            (_, true) if self.graph == Some(Mode::Decode) && args.batch > 1 => {
                let what =
                    format!("--mode decode,layer-pipelined: one sequence at a time, not {}", args.batch);
                Err(Failure::new(Exit::Unsupported, what).help("leave --batch away"))
            }
            _ => Ok(()),
        }
    }

    /// Whether the weights stay on the wafer.
    pub fn resident(self) -> bool {
        self.wafer == Some(crate::wafer::Mode::LayerPipelined)
    }

    /// The graph whose ops are placed where weights stay, of one sequence: of all its tokens, or of one.
    ///
    /// # Errors
    /// Dimensions that the model refuses.
    pub fn placed(self, spec: &ModelSpec, seq: u64) -> Result<Option<Graph>, GraphError> {
        let seq = if self.graph == Some(Mode::Decode) { 1 } else { seq };
        let dims = Dims { batch: 1, seq, cached: 0 };
        self.resident().then(|| Graph::build(spec, Mode::Forward, dims)).transpose()
    }
}

fn usage(what: &str) -> Failure {
    Failure::new(Exit::Usage, format!("--mode: {what}"))
}
