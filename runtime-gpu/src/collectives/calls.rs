//! Words of ranks as calls of NCCL on the streams of a device.
//!
//! A group of ranks has a communicator, and so has every lane between two stages. Most words stand in the stream of all work.
//! Those said beside have a stream of their own. What goes to another stage is copied aside and sent on the lane's own stream,
//! since a send of NCCL waits until it is received, and the work behind it must not.
use super::bootstrap::{BootstrapError, Guest};
use super::library::{Call, Communicator, Nccl, Operands};
use super::{Peers, Standing, Word};
use crate::device::{Address, Device, DeviceError, Streams};
use crate::program::{Group, Said};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Between two looks at whether the device is done.
const PAUSE: Duration = Duration::from_micros(50);
/// Looks between two at whether the other ranks are still there.
const SELDOM: u32 = 256;

/// Time that has passed since some moment.
pub type Clock = Box<dyn Fn() -> Duration>;

/// One rank's side of a job on NVIDIA GPUs.
pub struct NcclPeers {
    nccl: Nccl,
    /// Shared with who leaves the job when all is done.
    guest: Rc<RefCell<Guest>>,
    standing: Standing,
    clock: Clock,
    patience: Duration,
    groups: BTreeMap<Group, Communicator>,
    lanes: BTreeMap<Lane, Messages>,
    /// The stream of words that are said beside.
    beside: Option<u64>,
}

/// A lane from this rank's stage or to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Lane {
    from: u64,
    to: u64,
    lane: u64,
}

/// What goes along a lane.
struct Messages {
    communicator: Communicator,
    /// The stream on which messages are sent; none on the receiving side.
    stream: Option<u64>,
    /// Where messages wait until they are received, and their size.
    aside: Option<(Address, u64)>,
}

impl NcclPeers {
    /// A rank that has met the others of its job. Communicators are joined when they are first needed, which all ranks of a
    /// group do at the same word.
    pub fn new(
        nccl: Nccl,
        guest: Rc<RefCell<Guest>>,
        standing: Standing,
        patience: Duration,
        clock: Clock,
    ) -> NcclPeers {
        NcclPeers {
            nccl,
            guest,
            standing,
            clock,
            patience,
            groups: BTreeMap::new(),
            lanes: BTreeMap::new(),
            beside: None,
        }
    }

    /// Patience from now on.
    fn waited(clock: &Clock, patience: Duration) -> impl Fn() -> bool + '_ {
        let begin = clock();
        move || clock().saturating_sub(begin) >= patience
    }

    fn join(&mut self, what: &str, key: &str, rank: u64, ranks: u64) -> Result<Communicator, DeviceError> {
        let waited = NcclPeers::waited(&self.clock, self.patience);
        let gone = |error: BootstrapError| DeviceError::Peers { what: what.into(), why: error.to_string() };
        let name = self.guest.borrow_mut().name(key, &waited).map_err(gone)?;
        self.nccl.join(&name, rank, ranks, &waited).map_err(|error| error.told(what))
    }

    fn group(&mut self, word: &Word) -> Result<&Communicator, DeviceError> {
        if !self.groups.contains_key(&word.group) {
            let (member, circle) = (self.standing.member(word.group), self.standing.circle(word.group));
            let key = format!("{:?} {circle}", word.group);
            let joined = self.join(&word.name, &key, member.index, member.of)?;
            self.groups.insert(word.group, joined);
        }
        self.groups.get(&word.group).ok_or_else(|| DeviceError::Mismatch("no communicator".into()))
    }

    /// The lane's communicator, in which the sender is rank 0 and the receiver rank 1.
    fn lane(&mut self, word: &Word, lane: Lane) -> Result<(), DeviceError> {
        if self.lanes.contains_key(&lane) {
            return Ok(());
        }
        let circle = self.standing.circle(Group::Pipeline);
        let key = format!("lane {circle} {} {} {}", lane.from, lane.to, lane.lane);
        let rank = u64::from(lane.to == self.standing.stage.index);
        let communicator = self.join(&word.name, &key, rank, 2)?;
        self.lanes.insert(lane, Messages { communicator, stream: None, aside: None });
        Ok(())
    }

    /// The stream for a word of a group, behind all work so far.
    fn stream(&mut self, device: &mut dyn Device, word: &Word) -> Result<u64, DeviceError> {
        let streams = streams(device)?;
        if !word.beside {
            return Ok(streams.main());
        }
        let beside = match self.beside {
            Some(stream) => stream,
            None => streams.another()?,
        };
        self.beside = Some(beside);
        streams.follow(beside, streams.main())?;
        Ok(beside)
    }

    fn in_group(&mut self, device: &mut dyn Device, word: &Word, call: Call) -> Result<(), DeviceError> {
        let index = self.standing.member(word.group).index;
        let (x, out) = places(word, index)?;
        let stream = self.stream(device, word)?;
        let operands = Operands { x, out, count: word.count, dtype: word.dtype, stream };
        let patience = self.patience;
        self.group(word)?;
        let waited = NcclPeers::waited(&self.clock, patience);
        let group =
            self.groups.get(&word.group).ok_or_else(|| DeviceError::Mismatch("no communicator".into()))?;
        group.call(call, &operands, &waited).map_err(|error| error.told(&word.name))
    }

    fn send(&mut self, device: &mut dyn Device, word: &Word, lane: Lane) -> Result<(), DeviceError> {
        self.lane(word, lane)?;
        let bytes = word.bytes();
        let waited = NcclPeers::waited(&self.clock, self.patience);
        let Some(messages) = self.lanes.get_mut(&lane) else { return Ok(()) };
        let (at, room) = match messages.aside {
            Some(aside) => aside,
            None => (device.allocate(bytes)?, bytes),
        };
        if bytes > room {
            let what = format!("{}: a message of {bytes} bytes on a lane of {room}", word.name);
            return Err(DeviceError::Mismatch(what));
        }
        messages.aside = Some((at, room));
        let x = word.x.ok_or_else(|| DeviceError::Mismatch(format!("{} sends nothing", word.name)))?;
        let streams = streams(device)?;
        let stream = match messages.stream {
            Some(stream) => stream,
            None => streams.another()?,
        };
        messages.stream = Some(stream);
        // The copy waits for the message before, and what is behind in the stream of work waits for the copy only.
        let main = streams.main();
        streams.follow(main, stream)?;
        streams.copy_on(main, at, x, bytes)?;
        streams.follow(stream, main)?;
        let operands = Operands { x: at, out: at, count: word.count, dtype: word.dtype, stream };
        let sent = messages.communicator.call(Call::Send { to: 1 }, &operands, &waited);
        sent.map_err(|error| error.told(&word.name))
    }

    fn receive(&mut self, device: &mut dyn Device, word: &Word, lane: Lane) -> Result<(), DeviceError> {
        self.lane(word, lane)?;
        let stream = streams(device)?.main();
        let waited = NcclPeers::waited(&self.clock, self.patience);
        let Some(messages) = self.lanes.get(&lane) else { return Ok(()) };
        let out = word.out.ok_or_else(|| DeviceError::Mismatch(format!("{} receives nothing", word.name)))?;
        let operands = Operands { x: out, out, count: word.count, dtype: word.dtype, stream };
        let heard = messages.communicator.call(Call::Receive { from: 0 }, &operands, &waited);
        heard.map_err(|error| error.told(&word.name))
    }

    /// Whether the other ranks are still there and no call has failed.
    fn look(&mut self) -> Result<(), DeviceError> {
        let told = |why: BootstrapError| DeviceError::Peers { what: "the job".into(), why: why.to_string() };
        self.guest.borrow_mut().look().map_err(told)?;
        let communicators = self.groups.values().chain(self.lanes.values().map(|lane| &lane.communicator));
        communicators.into_iter().try_for_each(|one| one.look().map_err(|error| error.told("the job")))
    }
}

/// Operand and result of a word in a group, of which every rank's part may lie in its place among all.
fn places(word: &Word, index: u64) -> Result<(Address, Address), DeviceError> {
    let none = || DeviceError::Mismatch(format!("{}: {} without an operand", word.name, word.said));
    let own = word.own_part(index);
    match word.said {
        Said::Gather => Ok((own.ok_or_else(none)?, word.out.ok_or_else(none)?)),
        Said::SumScatter => Ok((word.x.ok_or_else(none)?, own.ok_or_else(none)?)),
        _ => {
            let either = word.x.or(word.out).ok_or_else(none)?;
            Ok((word.x.unwrap_or(either), word.out.unwrap_or(either)))
        }
    }
}

fn streams(device: &mut dyn Device) -> Result<&mut dyn Streams, DeviceError> {
    device.streams().ok_or_else(|| DeviceError::Mismatch("NCCL needs a GPU behind the CUDA driver".into()))
}

impl Peers for NcclPeers {
    fn standing(&self) -> Standing {
        self.standing
    }

    /// NCCL's calls can be captured (NCCL user guide, "Using NCCL with CUDA Graphs"); messages between stages have streams of
    /// their own, which a graph would have to join, and stay outside.
    fn noted(&self) -> bool {
        self.standing.stage.of == 1
    }

    fn say(&mut self, device: &mut dyn Device, word: &Word) -> Result<(), DeviceError> {
        let own = self.standing.stage.index;
        match word.said {
            Said::Sum => self.in_group(device, word, Call::Reduce { largest: false }),
            Said::Largest => self.in_group(device, word, Call::Reduce { largest: true }),
            Said::Gather => self.in_group(device, word, Call::Gather),
            Said::SumScatter => self.in_group(device, word, Call::SumScatter),
            Said::FromLastStage => {
                let root = self.standing.stage.of.saturating_sub(1);
                self.in_group(device, word, Call::Broadcast { root })
            }
            Said::Send { stage: to, lane } => self.send(device, word, Lane { from: own, to, lane }),
            Said::Receive { stage: from, lane } => self.receive(device, word, Lane { from, to: own, lane }),
        }
    }

    fn join(&mut self, device: &mut dyn Device) -> Result<(), DeviceError> {
        let Some(beside) = self.beside else { return Ok(()) };
        let streams = streams(device)?;
        streams.follow(streams.main(), beside)
    }

    fn settle(&mut self, device: &mut dyn Device) -> Result<(), DeviceError> {
        let begin = (self.clock)();
        let lanes: Vec<u64> = self.lanes.values().filter_map(|lane| lane.stream).collect();
        let mut looks = 0u32;
        loop {
            let streams = streams(device)?;
            let main = streams.main();
            let all = [main].into_iter().chain(self.beside).chain(lanes.iter().copied());
            let mut idle = true;
            for stream in all {
                idle = idle && streams.idle(stream)?;
            }
            if idle {
                return Ok(());
            }
            if looks.is_multiple_of(SELDOM) {
                self.look()?;
            }
            if (self.clock)().saturating_sub(begin) >= self.patience {
                let why = format!("waited {} s for the other ranks", self.patience.as_secs());
                return Err(DeviceError::Peers { what: "the words before".into(), why });
            }
            looks = looks.wrapping_add(1);
            std::thread::sleep(PAUSE);
        }
    }
}
