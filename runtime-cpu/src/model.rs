//! A program with its weights at hand and its row functions compiled: everything that sessions share.

use crate::parts::of_rank;
use crate::peers::Peers;
use crate::program::{Checked, CpuProgram, KeyOp, RowFn, Step};
use crate::rotation::turn;
use crate::rows::{Jit, Kernel, Turn};
use crate::session::{RunError, Session};
use crate::simd::Isa;
use crate::store::{COPY_AT_MOST, Footprint, Plan, Store};
use crate::weights::{WeightError, Weights};
use thiserror::Error;

/// How row functions run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// Compiled to machine code where the processor is supported, interpreted elsewhere.
    #[default]
    Compiled,
    /// Interpreted.
    Interpreted,
}

/// How a model is loaded.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Threads, the caller's included.
    pub jobs: usize,
    /// How row functions run.
    pub engine: Engine,
    /// Bytes up to which matrices are copied though they could be read from their files.
    pub copy_at_most: u64,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions { jobs: 1, engine: Engine::Compiled, copy_at_most: COPY_AT_MOST }
    }
}

/// Why a model cannot be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// A weight cannot be used.
    #[error(transparent)]
    Weight(#[from] WeightError),
    /// Threads cannot be started.
    #[error("starting {jobs} threads: {why}")]
    Threads {
        /// Threads asked for.
        jobs: usize,
        /// What the system said.
        why: String,
    },
}

/// What belongs to one step besides the program: its compiled function, slopes of its heads, its body.
pub(crate) struct Planned {
    pub kernel: Option<Kernel>,
    pub slopes: Vec<f32>,
    pub body: Vec<Planned>,
}

/// A program ready to run.
pub struct Model {
    pub(crate) program: Checked<CpuProgram>,
    pub(crate) store: Store,
    pub(crate) plan: Vec<Planned>,
    pub(crate) pool: rayon::ThreadPool,
    pub(crate) jobs: usize,
    pub(crate) isa: Isa,
}

/// A program whose weights were found, before any memory is taken for them.
pub struct Prepared {
    program: Checked<CpuProgram>,
    pool: rayon::ThreadPool,
    options: LoadOptions,
    plan: Plan,
}

impl Prepared {
    /// Finds the weights.
    ///
    /// # Errors
    /// When a weight is missing or has another shape, or threads cannot be had.
    pub fn new(
        program: Checked<CpuProgram>,
        weights: &dyn Weights,
        options: LoadOptions,
    ) -> Result<Prepared, LoadError> {
        let jobs = options.jobs.max(1);
        let threads = |e: rayon::ThreadPoolBuildError| LoadError::Threads { jobs, why: e.to_string() };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(jobs).build().map_err(threads)?;
        let plan = of_rank(&program, weights, |own| {
            pool.install(|| Plan::new(&program, own, options.copy_at_most))
        })?;
        Ok(Prepared { program, pool, options, plan })
    }

    /// The program.
    pub fn program(&self) -> &CpuProgram {
        &self.program
    }

    /// What loading will take: bytes that are copied, and bytes that stay in files.
    pub fn footprint(&self) -> Footprint {
        self.plan.footprint()
    }

    /// Converts the weights that the checkpoint has in another form, and compiles the row functions.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn load(self, weights: &dyn Weights) -> Result<Model, LoadError> {
        let Prepared { program, pool, options, plan } = self;
        let store = of_rank(&program, weights, |own| pool.install(|| Store::load(&program, own, plan)))?;
        let turns: Vec<Turn> = program.rotations.iter().map(turn).collect();
        let mut jit = if options.engine == Engine::Compiled { Jit::new() } else { None };
        let plan = planned(&program.body, &turns, &mut jit);
        Ok(Model { program, store, plan, pool, jobs: options.jobs.max(1), isa: Isa::detect() })
    }
}

impl Model {
    /// Finds and loads the weights, see [`Prepared`].
    ///
    /// # Errors
    /// When a weight is missing or has another shape, or threads or memory cannot be had.
    pub fn load(
        program: Checked<CpuProgram>,
        weights: &dyn Weights,
        options: LoadOptions,
    ) -> Result<Model, LoadError> {
        Prepared::new(program, weights, options)?.load(weights)
    }

    /// The program.
    pub fn program(&self) -> &CpuProgram {
        &self.program
    }

    /// Instruction set of the inner loops.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The weights.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Row functions in all, and how many of them were compiled.
    pub fn kernels(&self) -> (usize, usize) {
        fn count(plan: &[Planned]) -> (usize, usize) {
            plan.iter().fold((0, 0), |(all, compiled), p| {
                let inside = count(&p.body);
                let own = p.kernel.as_ref();
                let all = all + inside.0 + own.iter().count();
                (all, compiled + inside.1 + own.filter(|k| k.is_compiled()).iter().count())
            })
        }
        count(&self.plan)
    }

    /// Room for `sequences` sequences of at most `positions` tokens each.
    ///
    /// # Errors
    /// When the model was not built for so many positions, the cache is larger than memory can be, or the program is one
    /// rank's part.
    pub fn session(&self, sequences: usize, positions: usize) -> Result<Session<'_>, RunError> {
        Session::new(self, sequences, positions, None)
    }

    /// The same for one rank's part of a model, which meets the others in every call.
    ///
    /// # Errors
    /// As [`Model::session`].
    pub fn session_among<'m>(
        &'m self,
        peers: &'m mut dyn Peers,
        sequences: usize,
        positions: usize,
    ) -> Result<Session<'m>, RunError> {
        Session::new(self, sequences, positions, Some(peers))
    }
}

fn planned(steps: &[Step], turns: &[Turn], jit: &mut Option<Jit>) -> Vec<Planned> {
    let mut planned_steps = Vec::with_capacity(steps.len());
    for step in steps {
        let mut kernel = |function: &RowFn| Some(Kernel::new(function, turns, jit.as_mut()));
        let none = Planned { kernel: None, slopes: Vec::new(), body: Vec::new() };
        planned_steps.push(match step {
            Step::Rows { function, .. } | Step::Linear { function, .. } => {
                Planned { kernel: kernel(function), ..none }
            }
            Step::Attention { heads, mask, .. } => Planned { slopes: mask.slopes(*heads), ..none },
            Step::Keys { heads, op: KeyOp::Mask(mask), .. } => {
                Planned { slopes: mask.slopes(*heads), ..none }
            }
            Step::Repeat { body, .. } => Planned { body: planned(body, turns, jit), ..none },
            Step::Scores { .. } | Step::Keys { .. } | Step::Values { .. } | Step::Collective { .. } => none,
        });
    }
    planned_steps
}
