//! Ring collectives and point-to-point messages on links, pairs and shared adapters.

use crate::cluster::{LinkTopology, Links};
use crate::spec::HardwareSpec;
use crate::unit::{Bytes, BytesPerSecond, Seconds};

/// Ranks that talk to each other: `size` of them, `stride` apart in the numbering of all devices.
///
/// Nodes hold consecutive ranks. While one such group talks, all groups of the same shape do, so a
/// node's adapters are shared by the groups that cross them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Ranks in the group.
    pub size: u64,
    /// Distance of neighbouring ranks; 1 for consecutive ones.
    pub stride: u64,
}

/// A ring over a group: what one direction carries, and the latency of its steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ring {
    /// Ranks on it.
    pub size: u64,
    /// Nodes it passes through.
    pub nodes: u64,
    /// Data that passes any rank per second.
    pub bandwidth: BytesPerSecond,
    /// A step inside a node.
    pub inner_step: Seconds,
    /// A step between nodes.
    pub outer_step: Seconds,
    /// A call beside its steps.
    pub call: Seconds,
}

impl Ring {
    /// The ring of a group on a machine. Where the machine states no link, moving data costs nothing:
    /// a checked machine has links wherever it has more than one device.
    pub fn new(machine: &HardwareSpec, group: Group) -> Ring {
        let per_node = members_per_node(machine.node.devices, group);
        let nodes = group.size.div_ceil(per_node);
        let inner = inner_bandwidth(machine, per_node);
        let outer = if nodes > 1 { outer_bandwidth(machine, group) } else { BytesPerSecond(f64::INFINITY) };
        let links = machine.node.links.as_ref();
        let network = machine.network.as_ref();
        let inner_step = links.map_or(Seconds::ZERO, |links| links.step_latency);
        let link_call = links.map_or(Seconds::ZERO, |links| links.call_latency);
        let network_call = network.map_or(Seconds::ZERO, |network| network.call_latency);
        Ring {
            size: group.size,
            nodes,
            bandwidth: inner.min(outer),
            inner_step,
            outer_step: network.map_or(Seconds::ZERO, |network| network.step_latency),
            call: if nodes > 1 { network_call.max(link_call) } else { link_call },
        }
    }

    /// Sums `bytes` over all ranks and leaves the sum on each: `2 (n-1)/n` of the data passes each rank
    /// in `2 (n-1)` steps (Patarasuk and Yuan, JPDC 2009).
    pub fn all_reduce(&self, bytes: Bytes) -> Seconds {
        self.passes(bytes, 2)
    }

    /// Brings the shards of `bytes` together on every rank: `(n-1)/n` of the data in `n-1` steps.
    pub fn all_gather(&self, bytes: Bytes) -> Seconds {
        self.passes(bytes, 1)
    }

    /// Sums `bytes` over all ranks and leaves a shard on each; costs what an all-gather costs.
    pub fn reduce_scatter(&self, bytes: Bytes) -> Seconds {
        self.passes(bytes, 1)
    }

    fn passes(&self, bytes: Bytes, passes: u64) -> Seconds {
        if self.size <= 1 {
            return Seconds::ZERO;
        }
        let part = (self.size - 1) as f64 / self.size as f64;
        let traffic = (bytes * (part * passes as f64)) / self.bandwidth;
        self.call + traffic + self.latency() * passes as f64
    }

    /// Brings `bytes` of one rank to all others, down the chain that the ring is. NCCL itself counts as many steps as
    /// there are ranks, between nodes all of the network's latency (NVIDIA/nccl, `src/graph/tuning.cc` at 01afd20).
    pub fn broadcast(&self, bytes: Bytes) -> Seconds {
        if self.size <= 1 {
            return Seconds::ZERO;
        }
        let step = if self.nodes > 1 { self.outer_step } else { self.inner_step };
        self.call + step * self.size as f64 + bytes / self.bandwidth
    }

    /// Latency of one pass: as many outer steps as there are nodes to cross, inner steps for the rest.
    fn latency(&self) -> Seconds {
        let outer = self.nodes - 1;
        let inner = (self.size - 1).saturating_sub(outer);
        self.outer_step * outer as f64 + self.inner_step * inner as f64
    }
}

/// What an exchange of parts between all ranks of a group takes: inside nodes and between them, beside each other.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Exchange {
    /// Over the links of a node.
    pub inside: Seconds,
    /// Through the adapters, which all devices of a node share.
    pub across: Seconds,
    /// Of the call and the longest way.
    pub latency: Seconds,
}

/// Every rank of a group sends `bytes` in all, an equal part of them to each rank; one part stays.
pub fn all_to_all(machine: &HardwareSpec, group: Group, bytes: Bytes) -> Exchange {
    if group.size <= 1 {
        return Exchange::default();
    }
    let part = bytes / group.size as f64;
    let near = members_per_node(machine.node.devices, group);
    let inside = machine.node.links.as_ref().filter(|_| near > 1).map_or(Seconds::ZERO, |links| {
        let sent = match links.topology {
            LinkTopology::Switch => part * (near - 1) as f64,
            LinkTopology::Pairs => part,
        };
        sent / (links.bandwidth * links.efficiency.0)
    });
    let far = machine.network.as_ref().filter(|_| group.size > near);
    let across = far.map_or(Seconds::ZERO, |network| {
        let share = network.node_bandwidth() * (network.efficiency.0 / machine.node.devices as f64);
        part * (group.size - near) as f64 / share
    });
    let ring = Ring::new(machine, group);
    let step = if group.size > near { ring.outer_step } else { ring.inner_step };
    Exchange { inside, across, latency: ring.call + step }
}

/// Sends `bytes` to one other device. `across` says whether it stands in another node; all devices of a
/// node send at the same time and share its adapters, as stages of a pipeline do.
pub fn point_to_point(machine: &HardwareSpec, bytes: Bytes, across: bool) -> Seconds {
    match (&machine.network, &machine.node.links) {
        (Some(network), _) if across => {
            let share = network.node_bandwidth() * network.efficiency.0 / machine.node.devices as f64;
            network.step_latency + bytes / share
        }
        (_, Some(links)) if !across => links.step_latency + bytes / (links.bandwidth * links.efficiency.0),
        _ => Seconds::ZERO,
    }
}

fn members_per_node(devices: u64, group: Group) -> u64 {
    (devices / group.stride.max(1)).clamp(1, group.size.max(1))
}

/// What a ring over `ranks` devices of one node carries.
fn inner_bandwidth(machine: &HardwareSpec, ranks: u64) -> BytesPerSecond {
    match &machine.node.links {
        Some(links) if ranks > 1 => {
            links.bandwidth * (links.efficiency.0 * disjoint_rings(links, ranks) as f64)
        }
        _ => BytesPerSecond(f64::INFINITY),
    }
}

/// Rings that do not share a link: one through a switch; over pairs, the complete directed graph on n
/// vertices splits into n-1 Hamiltonian cycles except for n = 4 and n = 6, where one fewer is taken
/// (Tillson, J. Combin. Theory B 29, 1980).
fn disjoint_rings(links: &Links, ranks: u64) -> u64 {
    match (links.topology, ranks) {
        (LinkTopology::Switch, _) => 1,
        (LinkTopology::Pairs, 4 | 6) => ranks - 2,
        (LinkTopology::Pairs, _) => ranks - 1,
    }
}

/// What a ring that crosses nodes carries: the node's adapters, shared by the groups that cross them. A ring
/// enters and leaves each node once, whatever the number of its ranks there.
fn outer_bandwidth(machine: &HardwareSpec, group: Group) -> BytesPerSecond {
    let Some(network) = &machine.network else { return BytesPerSecond(f64::INFINITY) };
    let groups = group.stride.clamp(1, machine.node.devices);
    network.node_bandwidth() * network.efficiency.0 / groups as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::machine;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-9 * b.abs()
    }

    #[test]
    fn a_ring_over_the_whole_amber_cluster_runs_at_the_rate_of_a_node() {
        let amber = machine("amber-cluster").unwrap();
        let ring = Ring::new(&amber, Group { size: 224, stride: 1 });
        assert_eq!((ring.nodes, ring.size), (56, 224));
        assert!(close(ring.bandwidth.0, 2.0 * 25e9 * 0.85));
        let time = ring.all_gather(Bytes(1e9)).0;
        let expected = 8.4e-6 + 1e9 * 223.0 / 224.0 / 42.5e9 + 55.0 * 14e-6 + 168.0 * 3.4e-6;
        assert!(close(time, expected), "{time} {expected}");
    }

    #[test]
    fn groups_of_one_rank_a_node_share_its_adapters() {
        let amber = machine("amber-cluster").unwrap();
        let data = Ring::new(&amber, Group { size: 56, stride: 4 });
        assert_eq!(data.nodes, 56);
        assert!(close(data.bandwidth.0, 2.0 * 25e9 * 0.85 / 4.0));
    }

    #[test]
    fn pairs_give_as_many_rings_as_are_disjoint() {
        let amber = machine("amber-cluster").unwrap();
        let rate = |size| Ring::new(&amber, Group { size, stride: 1 }).bandwidth.0;
        assert!(close(rate(2), 100e9 * 0.78));
        assert!(close(rate(3), 200e9 * 0.78));
        assert!(close(rate(4), 200e9 * 0.78));
        let dgx = machine("dgx-a100").unwrap();
        assert!(close(Ring::new(&dgx, Group { size: 8, stride: 1 }).bandwidth.0, 300e9 * 0.78));
    }

    #[test]
    fn an_all_reduce_is_a_reduce_scatter_and_an_all_gather_but_one_call() {
        let dgx = machine("dgx-a100").unwrap();
        let ring = Ring::new(&dgx, Group { size: 8, stride: 1 });
        let bytes = Bytes(1e8);
        let halves = ring.reduce_scatter(bytes) + ring.all_gather(bytes) - ring.call;
        assert!(close(ring.all_reduce(bytes).0, halves.0));
        assert_eq!(Ring::new(&dgx, Group { size: 1, stride: 1 }).all_reduce(bytes), Seconds::ZERO);
    }

    #[test]
    fn a_broadcast_goes_down_the_whole_chain() {
        let dgx = machine("dgx-a100").unwrap().with_devices(64).unwrap();
        let near = Ring::new(&dgx, Group { size: 8, stride: 1 });
        let far = Ring::new(&dgx, Group { size: 64, stride: 1 });
        assert!(close(near.broadcast(Bytes(0.0)).0, 8.4e-6 + 8.0 * 3.4e-6));
        assert!(close(far.broadcast(Bytes(0.0)).0, 8.4e-6 + 64.0 * 14e-6));
        let more = far.broadcast(Bytes(1e9)) - far.broadcast(Bytes(0.0));
        assert!(close(more.0, 1e9 / far.bandwidth.0));
        assert_eq!(Ring::new(&dgx, Group { size: 1, stride: 1 }).broadcast(Bytes(1e9)), Seconds::ZERO);
    }

    #[test]
    fn an_exchange_keeps_a_part_and_shares_the_adapters() {
        let dgx = machine("dgx-a100").unwrap().with_devices(32).unwrap();
        let inside = all_to_all(&dgx, Group { size: 8, stride: 1 }, Bytes(8e9));
        assert!(close(inside.inside.0, 7e9 / (300e9 * 0.78)) && inside.across == Seconds::ZERO);
        let wide = all_to_all(&dgx, Group { size: 32, stride: 1 }, Bytes(32e9));
        assert!(close(wide.inside.0, 7e9 / (300e9 * 0.78)));
        // 24 of 32 parts leave the node, whose eight adapters carry those of eight ranks.
        assert!(close(wide.across.0, 24e9 / (25e9 * 0.85)));
        // One rank a node: nothing stays inside, and the other ranks of the node send at the same time.
        let strided = all_to_all(&dgx, Group { size: 4, stride: 8 }, Bytes(4e9));
        assert!(strided.inside == Seconds::ZERO && close(strided.across.0, 3e9 / (25e9 * 0.85)));
        let amber = machine("amber-cluster").unwrap();
        let pairs = all_to_all(&amber, Group { size: 4, stride: 1 }, Bytes(4e9));
        assert!(close(pairs.inside.0, 1e9 / (100e9 * 0.78)));
        assert_eq!(all_to_all(&dgx, Group { size: 1, stride: 1 }, Bytes(1e9)), Exchange::default());
    }

    #[test]
    fn more_bandwidth_is_never_slower() {
        let slow = machine("amber-cluster").unwrap();
        let mut fast = slow.clone();
        if let (Some(network), Some(links)) = (fast.network.as_mut(), fast.node.links.as_mut()) {
            network.adapter_bandwidth = network.adapter_bandwidth * 2.0;
            links.bandwidth = links.bandwidth * 1.5;
        }
        for size in [2, 4, 8, 56, 224] {
            for stride in [1, 2, 4] {
                let group = Group { size, stride };
                let (a, b) = (Ring::new(&slow, group), Ring::new(&fast, group));
                assert!(b.all_reduce(Bytes(1e7)) <= a.all_reduce(Bytes(1e7)));
            }
        }
        for across in [false, true] {
            let bytes = Bytes(1e7);
            assert!(point_to_point(&fast, bytes, across) <= point_to_point(&slow, bytes, across));
        }
    }
}
