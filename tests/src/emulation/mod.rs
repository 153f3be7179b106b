//! A GPU for tests: kernels' texts compiled as C++ and run thread by thread on the host, behind the trait that programs are
//! executed through. Needs g++.
//!
//! ```text
//! Emulated --commands--> server (memory between guards, poisoned) --emu_launch--> kernels of one load, with shim.h
//! ```
//! Every access of a kernel is looked at (watch.h): races in shared memory, alignment, bounds.
//! What it compiles is kept in the build folder, by the hash of the text.
use lapidary_runtime_gpu::compile::Source;
use lapidary_runtime_gpu::device::{
    About, Address, Call, Device, DeviceError, GraphId, KernelId, MarkId, Product, Value,
};
use lapidary_runtime_gpu::program::{Boxes, LIBRARY_WORKSPACE_BYTES};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

mod numbers;
pub mod peers;
mod product;

pub use numbers::{bf16_bits, get, set};

const WATCH: &str = include_str!("watch.h");
/// What stands before kernels: the machine's instructions, Hopper's, and the way in.
const SHIM: [&str; 4] = [WATCH, include_str!("shim.h"), include_str!("hopper.h"), include_str!("launch.h")];
const SERVER: [&str; 3] = [WATCH, include_str!("watch.cpp"), include_str!("server.cpp")];

/// Work that a graph holds.
#[derive(Debug, Clone)]
enum Noted {
    Launch(Call),
    Product(Box<Product>),
    Fill(Address, u8, u64),
    Copy(Address, Address, u64),
}

/// A GPU on the host.
#[derive(Debug)]
pub struct Emulated {
    about: About,
    process: Child,
    commands: ChildStdin,
    answers: ChildStdout,
    complaints: std::fs::File,
    /// Module of the server and index within it.
    kernels: Vec<(u64, u64)>,
    allocated: Vec<(Address, u64)>,
    graphs: Vec<Vec<Noted>>,
    capturing: Option<Vec<Noted>>,
    marks: Vec<u64>,
    work: u64,
    workspace: bool,
    /// Whether threads run from the last to the first.
    pub backwards: bool,
}

impl Emulated {
    /// A GPU with 16 GiB.
    ///
    /// # Panics
    /// Where there is no g++.
    pub fn new() -> Emulated {
        Emulated::with_memory(16 << 30)
    }

    /// A GPU with less memory, or more.
    ///
    /// # Panics
    /// Where there is no g++.
    pub fn with_memory(memory_bytes: u64) -> Emulated {
        let server =
            built("server", &SERVER.join("\n"), &[&["-O1", "-rdynamic", "-o", BINARY, TEXT, "-ldl"]]);
        let complaints = tempfile::tempfile().expect("a temporary file");
        let stderr = complaints.try_clone().expect("a second handle");
        let mut process = Command::new(server)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .expect("the server starts");
        let (commands, answers) =
            (process.stdin.take().expect("stdin"), process.stdout.take().expect("stdout"));
        let about = About {
            product: "emulated GPU".into(),
            arch: "sm_80".into(),
            processors: 108,
            memory_bytes,
            cache_bytes: 1 << 20,
            driver: "12.9".into(),
        };
        Emulated {
            about,
            process,
            commands,
            answers,
            complaints,
            kernels: Vec::new(),
            allocated: Vec::new(),
            graphs: Vec::new(),
            capturing: None,
            marks: Vec::new(),
            work: 0,
            workspace: false,
            backwards: false,
        }
    }

    /// Sends words and bytes, and returns the answer.
    fn ask(&mut self, what: &str, words: &[u64], bytes: &[u8]) -> Result<u64, DeviceError> {
        let mut message: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        message.extend_from_slice(bytes);
        let sent = self.commands.write_all(&message).and_then(|()| self.commands.flush());
        let mut answer = [0; 8];
        match sent.and_then(|()| self.answers.read_exact(&mut answer)) {
            Ok(()) => Ok(u64::from_le_bytes(answer)),
            Err(error) => Err(self.complaint(what, &error)),
        }
    }

    fn complaint(&mut self, what: &str, error: &std::io::Error) -> DeviceError {
        let status = self.process.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
        let mut text = String::new();
        let read = self.complaints.rewind().and_then(|()| self.complaints.read_to_string(&mut text));
        let code = if read.is_err() || text.is_empty() { format!("{error}, {status}") } else { text };
        DeviceError::Call { what: what.into(), code: code.trim().into() }
    }

    /// Notes work where a graph is being made.
    fn note(&mut self, noted: Noted) -> bool {
        if let Some(graph) = &mut self.capturing {
            graph.push(noted);
            return true;
        }
        self.work += 1;
        false
    }

    /// A matrix as hopper.h reads it, in memory of its own.
    fn describe(&mut self, at: Address, boxes: &Boxes) -> Result<Address, DeviceError> {
        let (heads, sequences) = boxes.parts.map_or((0, 0), |parts| (parts.heads, parts.sequences));
        let sizes = [boxes.rows, boxes.cols, boxes.pitch_bytes, boxes.box_rows.into(), Boxes::COLS.into()];
        let words = [[at.0].as_slice(), &sizes, &[heads, sequences]].concat();
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize(128, 0);
        let place = self.allocate(128)?;
        self.write(place, &bytes)?;
        Ok(place)
    }

    fn outside_graphs(&self, what: &str) -> Result<(), DeviceError> {
        match self.capturing {
            Some(_) => Err(DeviceError::Mismatch(format!("{what} cannot be part of a graph"))),
            None => Ok(()),
        }
    }
}

impl Default for Emulated {
    fn default() -> Self {
        Emulated::new()
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Device for Emulated {
    fn about(&self) -> &About {
        &self.about
    }

    fn free_bytes(&mut self) -> Result<u64, DeviceError> {
        let used: u64 = self.allocated.iter().map(|(_, bytes)| bytes).sum();
        Ok(self.about.memory_bytes.saturating_sub(used))
    }

    fn has_workspace(&self) -> bool {
        self.workspace
    }

    fn allocate(&mut self, bytes: u64) -> Result<Address, DeviceError> {
        self.outside_graphs("an allocation")?;
        let (free, product) = (self.free_bytes()?, self.about.product.clone());
        if bytes > free {
            let (what, needed, classes) = ("one buffer".into(), bytes, Vec::new());
            return Err(DeviceError::Memory { what, product, needed, free, classes });
        }
        let at = Address(self.ask("an allocation", &[u64::from(b'A'), bytes], &[])?);
        self.allocated.push((at, bytes));
        Ok(at)
    }

    fn release(&mut self, at: Address) -> Result<(), DeviceError> {
        self.outside_graphs("a release")?;
        self.allocated.retain(|(known, _)| *known != at);
        self.ask("a release", &[u64::from(b'F'), at.0], &[]).map(drop)
    }

    fn write(&mut self, to: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        self.outside_graphs("a copy from the host")?;
        self.ask("a write", &[u64::from(b'W'), to.0, bytes.len() as u64], bytes).map(drop)
    }

    fn read(&mut self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.outside_graphs("a copy to the host")?;
        self.ask("a read", &[u64::from(b'R'), from.0, bytes.len() as u64], &[])?;
        self.answers.read_exact(bytes).map_err(|error| self.complaint("a read", &error))
    }

    /// Work is done as soon as it is asked for, so what is behind the mark is done too.
    fn read_behind(&mut self, mark: MarkId, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        match self.marks.get(mark.0) {
            Some(_) => self.read(from, bytes),
            None => Err(DeviceError::Mismatch("no such mark".into())),
        }
    }

    fn fill(&mut self, to: Address, byte: u8, bytes: u64) -> Result<(), DeviceError> {
        if self.note(Noted::Fill(to, byte, bytes)) {
            return Ok(());
        }
        self.ask("a fill", &[u64::from(b'S'), to.0, byte.into(), bytes], &[]).map(drop)
    }

    fn copy(&mut self, to: Address, from: Address, bytes: u64) -> Result<(), DeviceError> {
        if self.note(Noted::Copy(to, from, bytes)) {
            return Ok(());
        }
        self.ask("a copy", &[u64::from(b'C'), to.0, from.0, bytes], &[]).map(drop)
    }

    fn load(&mut self, sources: &[Source]) -> Result<Vec<KernelId>, DeviceError> {
        self.outside_graphs("loading kernels")?;
        if sources.is_empty() {
            return Ok(Vec::new());
        }
        // Linked without the flag that puts calls in front of accesses, which would bring its own library.
        let watched = ["-O1", "-fno-strict-aliasing", "-fsanitize=thread", "-fPIC", "-c", "-o", OBJECT, TEXT];
        let library = built("kernels", &together(sources), &[&watched, &["-shared", "-o", BINARY, OBJECT]]);
        let path = library.display().to_string();
        let module = self.ask("loading", &[u64::from(b'L'), path.len() as u64], path.as_bytes())?;
        let first = self.kernels.len();
        self.kernels.extend((0..sources.len() as u64).map(|index| (module, index)));
        Ok((first..self.kernels.len()).map(KernelId).collect())
    }

    fn launch(&mut self, call: &Call) -> Result<(), DeviceError> {
        if self.note(Noted::Launch(call.clone())) {
            return Ok(());
        }
        let (module, index) = self.kernels[call.kernel.0];
        let mut words = vec![u64::from(b'X'), module, index];
        words.extend(call.grid.iter().chain(&call.block).map(|n| u64::from(*n)));
        words.extend([call.shared_bytes, self.backwards.into(), call.args.len() as u64]);
        let mut described = Vec::new();
        for arg in &call.args {
            words.push(match arg {
                Value::Pointer(at) => at.0,
                Value::Boxes(at, boxes) => {
                    described.push(self.describe(*at, boxes)?);
                    described[described.len() - 1].0
                }
            });
        }
        self.ask("a launch", &words, &[])?;
        described.into_iter().try_for_each(|at| self.release(at))
    }

    fn product(&mut self, product: &Product) -> Result<(), DeviceError> {
        if self.note(Noted::Product(Box::new(product.clone()))) {
            return Ok(());
        }
        if !self.workspace {
            // As the driver's library does, which a graph cannot hold.
            self.outside_graphs("opening the library")?;
            self.allocate(LIBRARY_WORKSPACE_BYTES)?;
            self.workspace = true;
        }
        product::compute(self, product)
    }

    fn begin_graph(&mut self) -> Result<(), DeviceError> {
        self.outside_graphs("a graph")?;
        self.capturing = Some(Vec::new());
        Ok(())
    }

    fn end_graph(&mut self) -> Result<GraphId, DeviceError> {
        let none = || DeviceError::Mismatch("no graph was begun".into());
        self.graphs.push(self.capturing.take().ok_or_else(none)?);
        Ok(GraphId(self.graphs.len() - 1))
    }

    fn replay(&mut self, graph: GraphId) -> Result<(), DeviceError> {
        for noted in self.graphs[graph.0].clone() {
            match noted {
                Noted::Launch(call) => self.launch(&call)?,
                Noted::Product(product) => self.product(&product)?,
                Noted::Fill(to, byte, bytes) => self.fill(to, byte, bytes)?,
                Noted::Copy(to, from, bytes) => self.copy(to, from, bytes)?,
            }
        }
        Ok(())
    }

    fn mark(&mut self) -> Result<MarkId, DeviceError> {
        self.marks.push(self.work);
        Ok(MarkId(self.marks.len() - 1))
    }

    /// A microsecond for each piece of work.
    fn seconds(&mut self, from: MarkId, to: MarkId) -> Result<f64, DeviceError> {
        Ok((self.marks[to.0] - self.marks[from.0]) as f64 * 1e-6)
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        self.outside_graphs("waiting")
    }
}

/// The kernels in namespaces of their own, behind the shim, and their table.
fn together(sources: &[Source]) -> String {
    let mut text = SHIM.join("\n");
    for (i, source) in sources.iter().enumerate() {
        let call = format!("static void call(void** p) {{ emu_start({}, p); }}", source.name);
        text.push_str(&format!("namespace kernel{i} {{\n{}\n{call}\n}}\n", source.text));
    }
    let calls: Vec<String> = (0..sources.len()).map(|i| format!("kernel{i}::call")).collect();
    text + &format!(
        "static const emu_call table[] = {{{}}};\nstatic emu_call emu_kernel(unsigned index) {{ return table[index]; }}\n",
        calls.join(", ")
    )
}

/// Files that the compiler's commands name.
const TEXT: &str = "text.cpp";
const OBJECT: &str = "object.o";
const BINARY: &str = "binary";

/// Compiles a text by some commands, or finds it compiled; written beside its place and renamed, so that nobody meets half
/// of it.
fn built(kind: &str, text: &str, commands: &[&[&str]]) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/emulation");
    std::fs::create_dir_all(&folder).expect("the build folder");
    let digest = blake3::hash(format!("{commands:?}{text}").as_bytes()).to_hex();
    let place = folder.join(format!("{kind}-{digest}"));
    if place.is_file() {
        return place;
    }
    let draft = tempfile::tempdir_in(&folder).expect("a temporary folder");
    std::fs::write(draft.path().join(TEXT), text).expect("a file");
    for command in commands {
        let mut gcc = Command::new("g++");
        let out = gcc.current_dir(draft.path()).args(["-std=c++17", "-w"]).args(*command).output();
        let out = out.expect("g++ runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    std::fs::rename(draft.path().join(BINARY), &place).expect("the build folder takes it");
    place
}
