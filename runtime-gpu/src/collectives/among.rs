//! A device that stands among others: what it says goes through its peers, everything else to the device behind it.
//!
//! A graph is cut where ranks meet, unless the peers' words can be noted: its pieces are replayed with the words between.
use super::{Peers, Standing, Word};
use crate::compile::Source;
use crate::device::{About, Address, Call, Device, DeviceError, GraphId, KernelId, MarkId, Product};

/// A device and its peers.
pub struct Among<P: Peers> {
    device: Box<dyn Device>,
    peers: P,
    graphs: Vec<Vec<Piece>>,
    /// What was noted since a graph began.
    noting: Option<Vec<Piece>>,
}

/// A piece of a graph.
#[derive(Debug, Clone)]
enum Piece {
    Graph(GraphId),
    Word(Word),
    Join,
}

impl<P: Peers> Among<P> {
    /// The device of one rank.
    pub fn new(device: Box<dyn Device>, peers: P) -> Among<P> {
        Among { device, peers, graphs: Vec::new(), noting: None }
    }

    /// Ends the piece of the graph before a word, and begins the one behind it.
    fn cut(&mut self, piece: Piece) -> Result<(), DeviceError> {
        let before = self.device.end_graph()?;
        if let Some(pieces) = &mut self.noting {
            pieces.extend([Piece::Graph(before), piece]);
        }
        self.device.begin_graph()
    }
}

impl<P: Peers> Device for Among<P> {
    fn about(&self) -> &About {
        self.device.about()
    }

    fn free_bytes(&mut self) -> Result<u64, DeviceError> {
        self.device.free_bytes()
    }

    fn has_workspace(&self) -> bool {
        self.device.has_workspace()
    }

    fn allocate(&mut self, bytes: u64) -> Result<Address, DeviceError> {
        self.device.allocate(bytes)
    }

    fn release(&mut self, at: Address) -> Result<(), DeviceError> {
        self.peers.settle(self.device.as_mut())?;
        self.device.release(at)
    }

    fn write(&mut self, to: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        self.peers.settle(self.device.as_mut())?;
        self.device.write(to, bytes)
    }

    fn read(&mut self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.peers.settle(self.device.as_mut())?;
        self.device.read(from, bytes)
    }

    fn read_behind(&mut self, mark: MarkId, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.peers.settle(self.device.as_mut())?;
        self.device.read_behind(mark, from, bytes)
    }

    fn fill(&mut self, to: Address, byte: u8, bytes: u64) -> Result<(), DeviceError> {
        self.device.fill(to, byte, bytes)
    }

    fn copy(&mut self, to: Address, from: Address, bytes: u64) -> Result<(), DeviceError> {
        self.device.copy(to, from, bytes)
    }

    fn load(&mut self, sources: &[Source]) -> Result<Vec<KernelId>, DeviceError> {
        self.device.load(sources)
    }

    fn launch(&mut self, call: &Call) -> Result<(), DeviceError> {
        self.device.launch(call)
    }

    fn product(&mut self, product: &Product) -> Result<(), DeviceError> {
        self.device.product(product)
    }

    fn begin_graph(&mut self) -> Result<(), DeviceError> {
        self.device.begin_graph()?;
        self.noting = Some(Vec::new());
        Ok(())
    }

    fn end_graph(&mut self) -> Result<GraphId, DeviceError> {
        let pieces = self.noting.take();
        let last = self.device.end_graph()?;
        let mut pieces = pieces.ok_or_else(|| DeviceError::Mismatch("no graph was begun".into()))?;
        pieces.push(Piece::Graph(last));
        self.graphs.push(pieces);
        Ok(GraphId(self.graphs.len() - 1))
    }

    fn replay(&mut self, graph: GraphId) -> Result<(), DeviceError> {
        for piece in &self.graphs[graph.0] {
            match piece {
                Piece::Graph(id) => self.device.replay(*id)?,
                Piece::Word(word) => self.peers.say(self.device.as_mut(), word)?,
                Piece::Join => self.peers.join(self.device.as_mut())?,
            }
        }
        Ok(())
    }

    fn mark(&mut self) -> Result<MarkId, DeviceError> {
        self.device.mark()
    }

    fn seconds(&mut self, from: MarkId, to: MarkId) -> Result<f64, DeviceError> {
        self.peers.settle(self.device.as_mut())?;
        self.device.seconds(from, to)
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        self.peers.settle(self.device.as_mut())?;
        self.device.wait()
    }

    fn standing(&self) -> Option<Standing> {
        Some(self.peers.standing())
    }

    fn say(&mut self, word: &Word) -> Result<(), DeviceError> {
        match self.noting.is_some() && !self.peers.noted() {
            true => self.cut(Piece::Word(word.clone())),
            false => self.peers.say(self.device.as_mut(), word),
        }
    }

    fn join(&mut self) -> Result<(), DeviceError> {
        match self.noting.is_some() && !self.peers.noted() {
            true => self.cut(Piece::Join),
            false => self.peers.join(self.device.as_mut()),
        }
    }
}
