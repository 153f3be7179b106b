//! Ranks among threads: each has a device of its own, and what they say passes through memory of the host.
//!
//! A lane holds one message that is not yet received, as the ranks on GPUs have it: a schedule that locks there locks here, and
//! ends with a sentence when patience does.
use super::numbers::{get, set};
use lapidary_runtime_gpu::collectives::{Peers, Standing, Word};
use lapidary_runtime_gpu::device::{Device, DeviceError};
use lapidary_runtime_gpu::program::{Group, Said};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Where threads meet.
#[derive(Debug, Default)]
pub struct Hub {
    state: Mutex<State>,
    changed: Condvar,
}

/// One word of a group: its kind, the circle of ranks, and how many words they said before.
type Key = (Group, u64, u64);

#[derive(Debug, Default)]
struct State {
    words: BTreeMap<Key, Vec<Option<Told>>>,
    heard: BTreeMap<Key, u64>,
    /// By circle, sender, receiver and lane.
    lanes: BTreeMap<[u64; 4], Option<Vec<u8>>>,
    gone: Option<String>,
}

#[derive(Debug, Clone)]
struct Told {
    said: String,
    bytes: Vec<u8>,
}

/// One thread's side.
#[derive(Debug)]
pub struct Threads {
    hub: Arc<Hub>,
    standing: Standing,
    said: BTreeMap<Group, u64>,
    patience: Duration,
    /// How many words of each kind were said.
    pub count: usize,
}

impl Threads {
    /// A rank that meets the others at a hub.
    pub fn new(hub: Arc<Hub>, standing: Standing, patience: Duration) -> Threads {
        Threads { hub, standing, said: BTreeMap::new(), patience, count: 0 }
    }

    /// Waits until something is there.
    fn until<T>(
        &self,
        word: &Word,
        mut found: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T, DeviceError> {
        let fault = |why: String| DeviceError::Peers { what: word.name.clone(), why };
        let mut state = self.state();
        loop {
            if let Some(value) = found(&mut state) {
                self.hub.changed.notify_all();
                return Ok(value);
            }
            if let Some(why) = &state.gone {
                return Err(fault(why.clone()));
            }
            let (next, late) =
                self.hub.changed.wait_timeout(state, self.patience).unwrap_or_else(PoisonError::into_inner);
            if late.timed_out() {
                return Err(fault(format!("{}: the other ranks did not come", word.said)));
            }
            state = next;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.hub.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells what this rank has, and returns what all have, by their place in the group.
    fn exchange(&mut self, word: &Word, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, DeviceError> {
        let member = self.standing.member(word.group);
        let said = self.said.entry(word.group).or_default();
        let key = (word.group, self.standing.circle(word.group), *said);
        *said += 1;
        let told = Told { said: format!("{} of {} {}", word.said, word.count, word.dtype.word()), bytes };
        {
            let mut state = self.state();
            let all = state.words.entry(key).or_insert_with(|| vec![None; member.of as usize]);
            all[member.index as usize] = Some(told.clone());
            self.hub.changed.notify_all();
        }
        let all: Vec<Told> = self.until(word, |state| {
            let all: Vec<Told> = state.words.get(&key)?.iter().cloned().collect::<Option<_>>()?;
            // The last to hear takes the word away.
            let heard = state.heard.entry(key).or_default();
            *heard += 1;
            if *heard == member.of {
                state.words.remove(&key);
                state.heard.remove(&key);
            }
            Some(all)
        })?;
        match all.iter().find(|other| other.said != told.said) {
            Some(other) => {
                let why = format!("this rank says {}, another {}", told.said, other.said);
                Err(DeviceError::Peers { what: word.name.clone(), why })
            }
            None => Ok(all.into_iter().map(|told| told.bytes).collect()),
        }
    }

    fn lane(&self, from: u64, to: u64, lane: u64) -> [u64; 4] {
        [self.standing.circle(Group::Pipeline), from, to, lane]
    }

    fn tell_group(&mut self, device: &mut dyn Device, word: &Word) -> Result<(), DeviceError> {
        let member = self.standing.member(word.group);
        let (part, ranks) = (word.bytes() as usize, member.of as usize);
        let whole = word.said == Said::SumScatter;
        let told = match (word.said, word.x) {
            (Said::FromLastStage, None) => Vec::new(),
            _ => {
                let at = if whole { word.x } else { word.own_part(member.index) };
                let mut bytes = vec![0; if whole { part * ranks } else { part }];
                device.read(at.ok_or_else(|| lacks(word))?, &mut bytes)?;
                bytes
            }
        };
        let all = self.exchange(word, told)?;
        let (to, heard) = match word.said {
            Said::Gather => (word.out, all.concat()),
            Said::SumScatter => {
                let start = member.index as usize * part;
                let runs: Vec<&[u8]> = all.iter().map(|bytes| &bytes[start..start + part]).collect();
                (word.own_part(member.index), joined(word, &runs, |a, b| a + b))
            }
            Said::FromLastStage => (word.out, all[ranks - 1].clone()),
            said => {
                let all: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
                let largest = said == Said::Largest;
                (word.out, joined(word, &all, |a, b| if largest { a.max(b) } else { a + b }))
            }
        };
        match (to, word.said) {
            (None, Said::FromLastStage) => Ok(()),
            (to, _) => device.write(to.ok_or_else(|| lacks(word))?, &heard),
        }
    }
}

fn lacks(word: &Word) -> DeviceError {
    DeviceError::Mismatch(format!("{}: {} without an operand", word.name, word.said))
}

/// Element by element over all ranks, in their order.
fn joined(word: &Word, all: &[&[u8]], with: impl Fn(f64, f64) -> f64) -> Vec<u8> {
    let mut bytes = vec![0; word.bytes() as usize];
    for i in 0..word.count as usize {
        let values = all.iter().map(|one| get(word.dtype, one, i));
        set(word.dtype, &mut bytes, i, values.reduce(&with).unwrap_or(0.0));
    }
    bytes
}

impl Peers for Threads {
    fn standing(&self) -> Standing {
        self.standing
    }

    fn say(&mut self, device: &mut dyn Device, word: &Word) -> Result<(), DeviceError> {
        self.count += 1;
        let own = self.standing.stage.index;
        match word.said {
            Said::Send { stage, lane } => {
                let mut bytes = vec![0; word.bytes() as usize];
                device.read(word.x.ok_or_else(|| lacks(word))?, &mut bytes)?;
                let lane = self.lane(own, stage, lane);
                self.until(word, |state| {
                    let place = state.lanes.entry(lane).or_default();
                    place.is_none().then(|| *place = Some(std::mem::take(&mut bytes)))
                })
            }
            Said::Receive { stage, lane } => {
                let lane = self.lane(stage, own, lane);
                let bytes = self.until(word, |state| state.lanes.get_mut(&lane)?.take())?;
                if bytes.len() as u64 != word.bytes() {
                    let why = format!("{} bytes came, {} were expected", bytes.len(), word.bytes());
                    return Err(DeviceError::Peers { what: word.name.clone(), why });
                }
                device.write(word.out.ok_or_else(|| lacks(word))?, &bytes)
            }
            _ => self.tell_group(device, word),
        }
    }

    fn join(&mut self, _: &mut dyn Device) -> Result<(), DeviceError> {
        Ok(())
    }

    fn settle(&mut self, _: &mut dyn Device) -> Result<(), DeviceError> {
        Ok(())
    }
}

impl Drop for Threads {
    /// A rank that panics is gone, and the others are told.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let told =
                format!("rank {} in stage {} is gone", self.standing.tensor.index, self.standing.stage.index);
            self.state().gone.get_or_insert(told);
            self.hub.changed.notify_all();
        }
    }
}

/// Does something as each rank of a plan (tensor-parallel ranks, replicas, stages), every one in a thread of its own; the
/// outcomes by rank.
///
/// # Panics
/// Where one of them does.
pub fn ranks<T: Send>(degrees: [u64; 3], share: impl Fn(Threads) -> T + Sync) -> Vec<T> {
    let hub = Arc::new(Hub::default());
    let world: u64 = degrees.iter().product();
    std::thread::scope(|scope| {
        let (share, hub) = (&share, &hub);
        let begin = |rank: u64| {
            let peers = Threads::new(hub.clone(), Standing::of(rank, degrees), Duration::from_secs(60));
            scope.spawn(move || share(peers))
        };
        let threads: Vec<_> = (0..world).map(begin).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank")).collect()
    })
}
