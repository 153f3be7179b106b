//! How ranks find each other over TCP, and notice that one is gone: the first rank serves, all are its guests.
//!
//! ```text
//! guest to host    HELLO (rank, world, plan, device)      NAME key              BYE
//! host to guest    WELCOME | NO (what is wrong)           NAME (128 bytes)      NO (who is gone)
//! ```
//! Every message is a word, a length and bytes, words little endian. Nobody is welcome before all have come, so a rank that is
//! missing ends all of them, and all are told which one it is. A name belongs to a key: the first guest that asks for it has it
//! made, the others get the same. A guest that ends without a goodbye is gone, and the others are told.
//! Time is told by who calls: this file owns no clock.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::thread::JoinHandle;
use std::time::Duration;
use thiserror::Error;

/// Bytes of a name: those of `ncclUniqueId` (NCCL user guide, "Types").
pub const NAME: usize = 128;
/// Between two looks at whether something has come.
const PAUSE: Duration = Duration::from_millis(5);
/// Looks until what should be there at once is given up: two seconds.
const LOOKS: u32 = 400;
/// No message is longer: a key, a device's name, a sentence.
const LONGEST: u64 = 4096;

const HELLO: u64 = u64::from_le_bytes(*b"lapidary");
const WELCOME: u64 = 1;
const ASK: u64 = 2;
const TOLD: u64 = 3;
const BYE: u64 = 4;
const NO: u64 = 5;

/// What a rank says of itself. All but the device have to go together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Which rank.
    pub rank: u64,
    /// How many there are.
    pub world: u64,
    /// The plan and the model, in words.
    pub plan: String,
    /// Machine and GPU, which no two ranks share.
    pub device: String,
}

/// Why ranks do not meet.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BootstrapError {
    /// The first rank cannot listen, or is not found.
    #[error("{address}: {what}")]
    Address {
        /// Host and port.
        address: String,
        /// What the system says.
        what: String,
    },
    /// What the first rank says of the job, or that it does not answer.
    #[error("{0}")]
    Told(String),
}

/// How patience ends: true when enough time has passed.
pub type Waited = dyn Fn() -> bool + Send;

/// Makes names.
pub type Namer = dyn FnMut() -> Result<[u8; NAME], String> + Send;

/// A rank among the guests.
#[derive(Debug)]
pub struct Guest {
    stream: TcpStream,
    /// The host's thread, on the first rank.
    host: Option<JoinHandle<()>>,
}

impl Guest {
    /// Meets all ranks of a job at `address`, where the first rank opens its door.
    ///
    /// # Errors
    /// [`BootstrapError`] when some never come, or are not of this job.
    pub fn meet(
        hello: &Hello,
        address: (&str, u16),
        namer: Box<Namer>,
        waited: impl Fn() -> bool + Send + Clone + 'static,
    ) -> Result<Guest, BootstrapError> {
        let shown = format!("{}:{}", address.0, address.1);
        if hello.rank > 0 {
            return Guest::enter(hello, address, None, &waited);
        }
        let door = TcpListener::bind(("0.0.0.0", address.1)).map_err(|error| BootstrapError::Address {
            address: shown.clone(),
            what: format!("the first rank cannot listen: {error}"),
        })?;
        Guest::open(hello, door, namer, waited)
    }

    /// The first rank's way in, at a door that is open.
    fn open(
        hello: &Hello,
        door: TcpListener,
        namer: Box<Namer>,
        waited: impl Fn() -> bool + Send + Clone + 'static,
    ) -> Result<Guest, BootstrapError> {
        let told = |error: std::io::Error| BootstrapError::Told(format!("the first rank: {error}"));
        let port = door.local_addr().map_err(told)?.port();
        door.set_nonblocking(true).map_err(told)?;
        let host = Host { hello: hello.clone(), guests: BTreeMap::new(), names: BTreeMap::new(), namer };
        let patience: Box<Waited> = Box::new(waited.clone());
        let thread = std::thread::spawn(move || host.serve(&door, &patience));
        Guest::enter(hello, ("127.0.0.1", port), Some(thread), &waited)
    }

    fn enter(
        hello: &Hello,
        address: (&str, u16),
        host: Option<JoinHandle<()>>,
        waited: &dyn Fn() -> bool,
    ) -> Result<Guest, BootstrapError> {
        let shown = format!("{}:{}", address.0, address.1);
        let mut stream = loop {
            let found = address.to_socket_addrs().map_err(|error| BootstrapError::Address {
                address: shown.clone(),
                what: format!("the first rank's host is not found: {error}"),
            })?;
            let reached = |at| TcpStream::connect_timeout(&at, Duration::from_secs(1)).ok();
            match found.into_iter().find_map(reached) {
                Some(stream) => break stream,
                None if waited() => {
                    return Err(BootstrapError::Told(format!(
                        "waited for rank 0 at {shown}, which did not come"
                    )));
                }
                None => std::thread::sleep(PAUSE),
            }
        };
        let lost =
            |error: std::io::Error| BootstrapError::Told(format!("the first rank at {shown}: {error}"));
        stream.set_nodelay(true).map_err(lost)?;
        say(&mut stream, HELLO, hello.text().as_bytes()).map_err(lost)?;
        stream.set_nonblocking(true).map_err(lost)?;
        let mut guest = Guest { stream, host };
        match guest.hear(waited)? {
            (WELCOME, _) => Ok(guest),
            (_, text) => Err(BootstrapError::Told(words(&text))),
        }
    }

    /// The name that belongs to a key, the same for all who ask.
    ///
    /// # Errors
    /// When the first rank cannot make it or is gone.
    pub fn name(&mut self, key: &str, waited: &dyn Fn() -> bool) -> Result<[u8; NAME], BootstrapError> {
        let sent = say(&mut self.stream, ASK, key.as_bytes());
        sent.map_err(|error| BootstrapError::Told(format!("the first rank: {error}")))?;
        let (kind, bytes) = self.hear(waited)?;
        match (kind, <[u8; NAME]>::try_from(bytes.as_slice())) {
            (TOLD, Ok(name)) => Ok(name),
            _ => Err(BootstrapError::Told(words(&bytes))),
        }
    }

    /// Whether all are still there, without waiting.
    ///
    /// # Errors
    /// When one is gone.
    pub fn look(&mut self) -> Result<(), BootstrapError> {
        match hear(&mut self.stream, &|| true) {
            Heard::Nothing => Ok(()),
            Heard::Message(_, text) => Err(BootstrapError::Told(words(&text))),
            Heard::End => Err(BootstrapError::Told("the first rank ended".into())),
        }
    }

    fn hear(&mut self, waited: &dyn Fn() -> bool) -> Result<(u64, Vec<u8>), BootstrapError> {
        match hear(&mut self.stream, waited) {
            Heard::Message(kind, bytes) => Ok((kind, bytes)),
            Heard::Nothing => Err(BootstrapError::Told("the first rank does not answer".into())),
            Heard::End => Err(BootstrapError::Told("the first rank ended".into())),
        }
    }

    /// Says goodbye; the first rank stays until all have.
    pub fn leave(&mut self) {
        let _ = say(&mut self.stream, BYE, &[]);
        if let Some(host) = self.host.take() {
            let _ = host.join();
        }
    }
}

impl Hello {
    fn text(&self) -> String {
        format!("{}\n{}\n{}\n{}", self.rank, self.world, self.plan, self.device)
    }

    fn read(bytes: &[u8]) -> Option<Hello> {
        let text = words(bytes);
        let mut lines = text.splitn(4, '\n');
        let mut number = || lines.next()?.parse::<u64>().ok();
        let (rank, world) = (number()?, number()?);
        let (plan, device) = (lines.next()?.to_string(), lines.next()?.to_string());
        Some(Hello { rank, world, plan, device })
    }
}

/// The first rank's thread.
struct Host {
    hello: Hello,
    /// By rank: device and connection; none once it said goodbye.
    guests: BTreeMap<u64, (String, Option<TcpStream>)>,
    names: BTreeMap<String, [u8; NAME]>,
    namer: Box<Namer>,
}

impl Host {
    fn serve(mut self, door: &TcpListener, waited: &Waited) {
        if let Err(why) = self.gather(door, waited) {
            return self.tell_all(NO, why.as_bytes());
        }
        self.tell_all(WELCOME, &[]);
        while self.guests.values().any(|(_, stream)| stream.is_some()) {
            if let Err(why) = self.round() {
                return self.tell_all(NO, why.as_bytes());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Lets ranks in until all are there. What ends the job is told once the first rank is in, which tells it to people.
    fn gather(&mut self, door: &TcpListener, waited: &Waited) -> Result<(), String> {
        let mut refused = None;
        while (self.guests.len() as u64) < self.hello.world {
            if let Some(why) = refused.take_if(|_| self.guests.contains_key(&0)) {
                return Err(why);
            }
            match door.accept() {
                Ok((stream, from)) => match self.greet(stream, &from.to_string()) {
                    Ok(()) => {}
                    Err((0, why)) => return Err(why),
                    Err((_, why)) => refused = Some(why),
                },
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error.to_string()),
                Err(_) if waited() => return Err(self.missing()),
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
        Ok(())
    }

    fn missing(&self) -> String {
        let missing: Vec<String> = (0..self.hello.world)
            .filter(|rank| !self.guests.contains_key(rank))
            .map(|r| r.to_string())
            .collect();
        format!("waited for rank {}, which did not come", missing.join(", "))
    }

    /// Lets one in. What is no rank of this software is left at the door; a rank of another job ends this one.
    fn greet(&mut self, mut stream: TcpStream, from: &str) -> Result<(), (u64, String)> {
        let looks = std::cell::Cell::new(0);
        let patience = || looks.replace(looks.get() + 1) > LOOKS;
        if stream.set_nonblocking(true).is_err() {
            return Ok(());
        }
        let Heard::Message(HELLO, bytes) = hear(&mut stream, &patience) else { return Ok(()) };
        let Some(guest) = Hello::read(&bytes) else { return Ok(()) };
        let wrong = self.wrong(&guest);
        let (rank, device) = (guest.rank, guest.device);
        match wrong {
            None => {
                self.guests.insert(rank, (device, Some(stream)));
                Ok(())
            }
            Some(why) => {
                let why = format!("rank {rank} at {from}: {why}");
                // Who is told nothing sees the end of the connection instead.
                let _ = say(&mut stream, NO, why.as_bytes());
                Err((rank, why))
            }
        }
    }

    fn wrong(&self, guest: &Hello) -> Option<String> {
        let own = &self.hello;
        let on_it = |device: &String| *device == guest.device;
        if guest.world != own.world {
            return Some(format!(
                "it is one of {} ranks, the first rank is one of {}",
                guest.world, own.world
            ));
        }
        if guest.rank >= own.world || self.guests.contains_key(&guest.rank) {
            return Some("another process has this rank".into());
        }
        if guest.plan != own.plan {
            return Some(format!("it runs `{}`, the first rank `{}`", guest.plan, own.plan));
        }
        let twice = self.guests.iter().find(|(_, (device, _))| on_it(device));
        twice.map(|(other, _)| {
            format!("{} is rank {other}'s already: every rank needs a GPU of its own", guest.device)
        })
    }

    /// Answers what was asked since; an error when somebody is gone.
    fn round(&mut self) -> Result<(), String> {
        for (rank, (_, place)) in &mut self.guests {
            let Some(stream) = place else { continue };
            match hear(stream, &|| true) {
                Heard::Nothing => {}
                Heard::End => {
                    *place = None;
                    return Err(format!("rank {rank} ended"));
                }
                Heard::Message(BYE, _) => *place = None,
                Heard::Message(_, key) => {
                    let key = words(&key);
                    let name = match self.names.get(&key) {
                        Some(name) => *name,
                        None => (self.namer)()?,
                    };
                    self.names.insert(key, name);
                    // A guest that does not hear it is gone, which the next look tells.
                    let _ = say(stream, TOLD, &name);
                }
            }
        }
        Ok(())
    }

    fn tell_all(&mut self, kind: u64, bytes: &[u8]) {
        for stream in self.guests.values_mut().filter_map(|(_, stream)| stream.as_mut()) {
            let _ = say(stream, kind, bytes);
        }
    }
}

/// What came.
enum Heard {
    Nothing,
    Message(u64, Vec<u8>),
    End,
}

fn say(stream: &mut TcpStream, kind: u64, bytes: &[u8]) -> std::io::Result<()> {
    let mut message = [kind.to_le_bytes(), (bytes.len() as u64).to_le_bytes()].concat();
    message.extend_from_slice(bytes);
    stream.write_all(&message)
}

/// A message, once it is there; nothing when patience ends before it begins.
fn hear(stream: &mut TcpStream, waited: &dyn Fn() -> bool) -> Heard {
    let mut head = [0u8; 16];
    match fill(stream, &mut head, waited) {
        Filled::All => {}
        Filled::Nothing => return Heard::Nothing,
        Filled::End => return Heard::End,
    }
    let word = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap_or_default());
    let (kind, length) = (word(0), word(8));
    if length > LONGEST {
        return Heard::End;
    }
    let mut bytes = vec![0; length as usize];
    let looks = std::cell::Cell::new(0);
    match fill(stream, &mut bytes, &|| looks.replace(looks.get() + 1) > LOOKS) {
        Filled::All => Heard::Message(kind, bytes),
        _ => Heard::End,
    }
}

enum Filled {
    All,
    Nothing,
    End,
}

fn fill(stream: &mut TcpStream, into: &mut [u8], waited: &dyn Fn() -> bool) -> Filled {
    let (mut done, mut looks) = (0, 0);
    while done < into.len() {
        match stream.read(&mut into[done..]) {
            Ok(0) => return Filled::End,
            Ok(count) => done += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Filled::End,
            Err(_) if done == 0 && waited() => return Filled::Nothing,
            // What has begun to come is there soon, or never.
            Err(_) if done > 0 && looks > LOOKS => return Filled::End,
            Err(_) => {
                looks += 1;
                std::thread::sleep(PAUSE);
            }
        }
    }
    Filled::All
}

fn words(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn hello(rank: u64, world: u64) -> Hello {
        Hello { rank, world, plan: "tp2".into(), device: format!("node GPU {rank}") }
    }

    /// Patience that ends after so many looks.
    fn patience(looks: u64) -> impl Fn() -> bool + Send + Clone + 'static {
        let count = Arc::new(AtomicU64::new(0));
        move || count.fetch_add(1, Ordering::Relaxed) >= looks
    }

    type Outcome = Result<Guest, BootstrapError>;

    fn meet(ranks: &[Hello], looks: u64) -> Vec<Outcome> {
        let door = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = door.local_addr().unwrap().port();
        let mut made = 0u8;
        let namer = move || {
            made += 1;
            Ok([made; NAME])
        };
        std::thread::scope(|scope| {
            let enter = |rank: &Hello| {
                let (rank, waited) = (rank.clone(), patience(looks));
                scope.spawn(move || Guest::enter(&rank, ("127.0.0.1", port), None, &waited))
            };
            let others: Vec<_> = ranks[1..].iter().map(enter).collect();
            let first = Guest::open(&ranks[0], door, Box::new(namer), patience(looks));
            let others = others.into_iter().map(|other| other.join().unwrap());
            [first].into_iter().chain(others).collect()
        })
    }

    fn told(outcome: &Outcome) -> String {
        outcome.as_ref().map_or_else(ToString::to_string, |_| "welcome".into())
    }

    #[test]
    fn all_ranks_meet_and_a_key_has_one_name() {
        let mut guests: Vec<Guest> =
            meet(&[hello(0, 3), hello(2, 3), hello(1, 3)], 2000).into_iter().map(Result::unwrap).collect();
        let waited = patience(2000);
        let names: Vec<u8> = guests.iter_mut().map(|guest| guest.name("a", &waited).unwrap()[0]).collect();
        assert_eq!(names, [1, 1, 1]);
        assert_eq!(guests[1].name("b", &waited).unwrap()[0], 2);
        assert!(guests.iter_mut().all(|guest| guest.look().is_ok()));
        // The first leaves last: it waits for the others.
        guests.iter_mut().rev().for_each(Guest::leave);
        assert!(meet(&[hello(0, 1)], 2000)[0].is_ok());
    }

    #[test]
    fn a_rank_that_never_comes_is_named_to_all() {
        let outcomes = meet(&[hello(0, 4), hello(2, 4)], 60);
        let missing = "waited for rank 1, 3, which did not come";
        assert!(
            outcomes.iter().any(|one| told(one) == missing),
            "{:?}",
            outcomes.iter().map(told).collect::<Vec<_>>()
        );
        assert!(outcomes.iter().all(Result::is_err));
    }

    #[test]
    fn ranks_of_other_jobs_and_shared_devices_are_refused() {
        let refused = |other: Hello, why: &str| {
            let outcomes = meet(&[hello(0, 2), other], 2000);
            assert!(outcomes.iter().all(|one| told(one).contains(why)), "{}", told(&outcomes[1]));
        };
        refused(hello(1, 3), "it is one of 3 ranks, the first rank is one of 2");
        refused(Hello { plan: "pp2".into(), ..hello(1, 2) }, "it runs `pp2`, the first rank `tp2`");
        refused(Hello { device: "node GPU 0".into(), ..hello(1, 2) }, "every rank needs a GPU of its own");
    }

    /// A rank that ends without a goodbye is told to the others.
    #[test]
    fn a_rank_that_dies_is_told() {
        let mut guests: Vec<Guest> =
            meet(&[hello(0, 3), hello(1, 3), hello(2, 3)], 2000).into_iter().map(Result::unwrap).collect();
        drop(guests.pop());
        for guest in &mut guests {
            let waited = patience(2000);
            let why = loop {
                match guest.look() {
                    Err(error) => break error.to_string(),
                    Ok(()) if waited() => panic!("nobody was told"),
                    Ok(()) => std::thread::sleep(PAUSE),
                }
            };
            assert_eq!(why, "rank 2 ended");
        }
    }
}
