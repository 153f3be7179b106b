//! Where each buffer of a PE lies.
//!
//! Buffers are alive from a first to a last phase; those that share a phase must not overlap. Large ones are placed
//! first, each at the lowest address that is free in all its phases. Neighbouring words lie in neighbouring banks, of which
//! two share a port: operands of one vector op that begin behind one port halve its rate, so a buffer avoids the ports of
//! its partners where there is room.

use std::collections::{BTreeMap, BTreeSet};

/// A buffer to be placed.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Name.
    pub name: String,
    /// Size.
    pub bytes: u64,
    /// It starts at a multiple of this: the width of an access.
    pub align: u64,
    /// First phase it is alive in.
    pub first: usize,
    /// Last phase it is alive in.
    pub last: usize,
}

impl Request {
    fn meets(&self, other: &Request) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// Pairs of buffers read by one vector op, each in alphabetical order.
pub type Partners = BTreeSet<(String, String)>;

/// Memory of a PE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes for buffers.
    pub bytes: u64,
    /// Bytes of a bank's word.
    pub word: u64,
    /// Ports: words that many apart lie behind one.
    pub ports: u64,
}

/// Addresses by name, and the highest byte in use, which may be beyond the memory.
pub fn plan(requests: &[Request], partners: &Partners, memory: Memory) -> (BTreeMap<String, u64>, u64) {
    let mut order: Vec<&Request> = requests.iter().collect();
    order.sort_by(|a, b| b.bytes.cmp(&a.bytes).then(a.first.cmp(&b.first)).then(a.name.cmp(&b.name)));
    let mut placed: Vec<(&Request, u64)> = Vec::new();
    for request in order {
        let avoided = avoided_ports(request, &placed, partners, memory);
        let candidates = candidates(request, &placed, memory);
        let fits = |at: &&u64| **at + request.bytes <= memory.bytes && !avoided.contains(&memory.port(**at));
        let at = candidates.iter().find(fits).or(candidates.first()).copied().unwrap_or(0);
        placed.push((request, at));
    }
    let top = placed.iter().map(|(request, at)| at + request.bytes).max().unwrap_or(0);
    (placed.into_iter().map(|(request, at)| (request.name.clone(), at)).collect(), top)
}

impl Memory {
    fn port(&self, at: u64) -> u64 {
        at / self.word % self.ports
    }
}

/// Free addresses for a request, lowest first: at the start or behind a buffer that is alive with it, or some steps further,
/// behind each port that its alignment lets it begin at.
fn candidates(request: &Request, placed: &[(&Request, u64)], memory: Memory) -> Vec<u64> {
    let alive: Vec<_> = placed.iter().filter(|(other, _)| other.meets(request)).collect();
    let behind = alive.iter().map(|(other, at)| (at + other.bytes).next_multiple_of(request.align));
    let free = |at: &u64| {
        alive.iter().all(|(other, start)| at + request.bytes <= *start || start + other.bytes <= *at)
    };
    let steps = (memory.word * memory.ports).div_ceil(request.align);
    let all = behind.chain([0]).flat_map(|at| (0..steps).map(move |step| at + step * request.align));
    all.collect::<BTreeSet<_>>().into_iter().filter(free).collect()
}

/// Ports of the partners placed so far.
fn avoided_ports(
    request: &Request,
    placed: &[(&Request, u64)],
    partners: &Partners,
    memory: Memory,
) -> BTreeSet<u64> {
    let pair =
        |a: &str, b: &str| if a < b { (a.to_owned(), b.to_owned()) } else { (b.to_owned(), a.to_owned()) };
    let partner = |(other, _): &&(&Request, u64)| partners.contains(&pair(&request.name, &other.name));
    placed.iter().filter(partner).map(|(_, at)| memory.port(*at)).collect()
}

/// Bytes alive in each of the first `phases` phases.
pub fn alive(requests: &[Request], phases: usize) -> Vec<u64> {
    let in_phase = |phase: usize| requests.iter().filter(move |r| r.first <= phase && phase <= r.last);
    (0..phases).map(|phase| in_phase(phase).map(|r| r.bytes).sum()).collect()
}

/// The first phase with the most bytes, and how many.
pub fn fullest(alive: &[u64]) -> (usize, u64) {
    let most = alive.iter().copied().max().unwrap_or(0);
    (alive.iter().position(|bytes| *bytes == most).unwrap_or(0), most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(name: &str, bytes: u64, first: usize, last: usize) -> Request {
        Request { name: name.into(), bytes, align: 4, first, last }
    }

    const MEMORY: Memory = Memory { bytes: 49152, word: 4, ports: 4 };

    #[test]
    fn buffers_of_different_phases_share_memory() {
        let requests = [request("a", 1000, 0, 1), request("b", 800, 2, 3), request("c", 600, 1, 2)];
        let (at, top) = plan(&requests, &Partners::new(), MEMORY);
        assert_eq!((at["a"], at["b"], at["c"]), (0, 0, 1000));
        assert_eq!(top, 1600);
        assert_eq!(fullest(&alive(&requests, 4)), (1, 1600));
    }

    #[test]
    fn partners_lie_behind_ports_that_do_not_conflict() {
        let requests = [request("x", 1008, 0, 0), request("sum", 500, 0, 0)];
        let partners = Partners::from([("sum".into(), "x".into())]);
        let (at, _) = plan(&requests, &partners, MEMORY);
        assert_eq!((at["x"], at["sum"]), (0, 1012));
    }

    #[test]
    fn without_room_a_conflict_is_taken() {
        let requests = [request("x", 1008, 0, 0), request("sum", 500, 0, 0)];
        let partners = Partners::from([("sum".into(), "x".into())]);
        let (at, _) = plan(&requests, &partners, Memory { bytes: 1510, ..MEMORY });
        assert_eq!(at["sum"], 1008);
    }
}
