//! The check of meetings: within one program, and between the programs of all ranks.
use super::{Arg, Buffer, BufferKind, Dtype, Fault, GpuProgram, Group, Meeting, Said, Share, Step};
use lapidary_models::shard::StateSharding;
use std::collections::BTreeMap;

/// What is wrong with a meeting, looked at alone.
pub(super) fn meeting(program: &GpuProgram, meeting: &Meeting, place: &str) -> Vec<Fault> {
    let fault = |why: String| Fault::Meeting { step: place.into(), name: meeting.name.clone(), why };
    let Some(share) = &program.share else {
        return vec![fault("ranks meet in a program that is no rank's part".into())];
    };
    let mut whys = Vec::new();
    let ranks = share.ranks(meeting.group);
    if ranks < 2 {
        whys.push(format!("the {:?} group of {} has nobody to meet", meeting.group, share.plan()));
    }
    whys.extend(addressee(share, meeting));
    let wanted = meeting.elements(ranks).map(|elements| elements.saturating_mul(meeting.dtype.bytes()));
    for (arg, bytes) in [&meeting.x, &meeting.out].into_iter().zip(wanted) {
        let Some(arg) = arg else { continue };
        if arg.extent_bytes != bytes {
            whys.push(format!("{bytes} bytes are said, and {} of `{}` given", arg.extent_bytes, arg.buffer));
        }
        let of = program.buffer(&arg.buffer);
        if of.is_some_and(|buffer| buffer.dtype != meeting.dtype) {
            whys.push(format!("`{}` is not of {}", arg.buffer, meeting.dtype.word()));
        }
        let passing = of.is_some_and(|b| matches!(b.kind, BufferKind::Arena | BufferKind::Kept));
        if meeting.beside && passing {
            whys.push(format!("`{}` does not stay while a meeting is beside the rest", arg.buffer));
        }
    }
    if meeting.count == 0 {
        whys.push("nothing is said".into());
    }
    if matches!(meeting.dtype, Dtype::I32 | Dtype::I8) && adds(meeting.said) {
        whys.push(format!("a sum of {}", meeting.dtype.word()));
    }
    whys.into_iter().map(fault).collect()
}

const fn adds(said: Said) -> bool {
    matches!(said, Said::Sum | Said::Largest | Said::SumScatter)
}

/// Whether operands are there and the other side exists.
fn addressee(share: &Share, meeting: &Meeting) -> Vec<String> {
    let mut whys = Vec::new();
    let given = (meeting.x.is_some(), meeting.out.is_some());
    let last = share.stage.index + 1 == share.stage.of;
    let fits = match meeting.said {
        Said::Sum | Said::Largest => given == (true, true),
        Said::Gather => given.1,
        Said::SumScatter => given.0,
        Said::Send { .. } => given == (true, false),
        Said::Receive { .. } => given == (false, true),
        Said::FromLastStage => given == (last, !last),
    };
    if !fits {
        whys.push(format!("{} lacks an operand, or has one too many", meeting.said));
    }
    if let Said::Send { stage, .. } | Said::Receive { stage, .. } = meeting.said
        && (stage >= share.stage.of || stage == share.stage.index)
    {
        whys.push(format!("stage {} of {} meets stage {stage}", share.stage.index, share.stage.of));
    }
    let piped = matches!(meeting.said, Said::Send { .. } | Said::Receive { .. } | Said::FromLastStage);
    if piped && meeting.group != Group::Pipeline {
        whys.push(format!("{} is not said in the {:?} group", meeting.said, meeting.group));
    }
    whys
}

/// What is wrong with what a program says of its place, and with what touches memory that a meeting beside is still at.
pub(super) fn share(program: &GpuProgram) -> Vec<Fault> {
    let Some(share) = &program.share else { return Vec::new() };
    let mut whys = Vec::new();
    for (what, member) in [("tensor-parallel group", share.tensor), ("pipeline", share.stage)] {
        if member.index >= member.of {
            whys.push(format!("place {} of {} in the {what}", member.index, member.of));
        }
    }
    if share.replicas == 0 {
        whys.push("no replicas".into());
    }
    for (name, part) in &share.parts {
        if part.start.saturating_add(part.length) > part.whole || part.length > part.held || part.axis > 1 {
            whys.push(format!("`{name}`: {part:?} is no part of a parameter"));
        }
    }
    whys.extend(program.buffers.iter().filter_map(|buffer| run_of_replica(share, buffer)));
    if let Some(micros) = &share.micros {
        let (steps, mut before) = (program.steps.len() as u64, None);
        for at in micros.segments.iter().chain([&micros.finish]) {
            let ordered = before.map_or(*at == 0, |before| before < *at);
            if !ordered || *at > steps {
                whys.push(format!(
                    "segments {:?} before {} of {steps} steps",
                    micros.segments, micros.finish
                ));
                break;
            }
            before = Some(*at);
        }
        let (flights, segments) = (micros.schedule.flights, micros.segments.len() as u64);
        let mut turns = micros.schedule.turns.iter();
        if turns.any(|turn| turn.segment >= segments || turn.flight >= flights) {
            whys.push(format!("a turn outside of {segments} segments and {flights} flights"));
        }
    }
    let mut faults: Vec<Fault> = whys.into_iter().map(|why| Fault::Share { why }).collect();
    let mut beside = Beside::default();
    beside.steps(&program.steps, "", 0);
    faults.extend(beside.faults);
    faults
}

/// Whether the runs of all replicas make up a parameter.
fn run_of_replica(share: &Share, buffer: &Buffer) -> Option<String> {
    let Buffer { name, dtype, .. } = buffer;
    if !buffer.per_replica {
        return None;
    }
    if share.sharding.is_none() {
        return Some(format!(
            "`{name}` is a replica's own, but every one of {} holds everything",
            share.plan()
        ));
    }
    let whole = buffer.packing.as_ref()?;
    let bytes = whole.rows.saturating_mul(whole.pitch).saturating_mul(dtype.bytes());
    let held = buffer.slice_bytes().saturating_mul(share.replicas);
    (held < bytes).then(|| format!("`{name}` has {bytes} bytes, and {} replicas hold {held}", share.replicas))
}

/// Memory that meetings beside are at, by buffer.
#[derive(Default)]
struct Beside<'p> {
    held: BTreeMap<&'p str, Vec<(u64, u64)>>,
    faults: Vec<Fault>,
}

impl<'p> Beside<'p> {
    fn steps(&mut self, steps: &'p [Step], prefix: &str, slice: u64) {
        for (i, step) in steps.iter().enumerate() {
            match step {
                Step::Join => self.held.clear(),
                Step::Repeat { times, reverse, body } => {
                    // Where nothing is beside, one round tells as much as all.
                    let rounds = if has_beside(body) || !self.held.is_empty() { *times } else { 1 };
                    for round in 0..rounds {
                        let slice = if *reverse { times - 1 - round } else { round };
                        self.steps(body, &format!("{prefix}{i}."), slice);
                    }
                }
                _ => self.step(step, &format!("{prefix}{i}"), slice),
            }
        }
    }

    fn step(&mut self, step: &'p Step, place: &str, slice: u64) {
        let range = |arg: &Arg| {
            let start = arg.offset_bytes.saturating_add(slice.saturating_mul(arg.layer_stride_bytes));
            (start, start.saturating_add(arg.extent_bytes))
        };
        let beside = matches!(step, Step::Meet(meeting) if meeting.beside);
        for arg in step.args() {
            let (start, end) = range(arg);
            let held = self.held.get(arg.buffer.as_str());
            let met = held.is_some_and(|held| held.iter().any(|(from, to)| start < *to && *from < end));
            if met && !beside && self.faults.len() < 8 {
                let why = "a meeting beside is still at this memory".into();
                self.faults.push(Fault::Meeting { step: place.into(), name: arg.buffer.clone(), why });
            }
        }
        for arg in step.args().into_iter().filter(|_| beside) {
            self.held.entry(arg.buffer.as_str()).or_default().push(range(arg));
        }
    }
}

fn has_beside(steps: &[Step]) -> bool {
    steps.iter().any(|step| match step {
        Step::Meet(meeting) => meeting.beside,
        Step::Repeat { body, .. } => has_beside(body),
        _ => false,
    })
}

/// One thing that a rank says, as the others have to say it.
type Word = (Group, Said, Dtype, u64, bool);

/// Whether the programs of all ranks of one replica, in any order, go together: every rank of a group says the same in the
/// same order, and what is sent is received.
///
/// # Errors
/// Every fault found; a rank that is missing or there twice is one.
pub fn check_together(programs: &[&GpuProgram]) -> Result<(), Vec<Fault>> {
    let mut by_place: BTreeMap<(u64, u64), &GpuProgram> = BTreeMap::new();
    let mut whys = Vec::new();
    let first = programs.first().and_then(|program| program.share.as_ref());
    for program in programs {
        let Some(share) = &program.share else {
            whys.push(format!("{} is no rank's part", program.name));
            continue;
        };
        if first.is_some_and(|first| first.plan() != share.plan()) {
            whys.push(format!("programs of {} and of other plans", share.plan()));
        }
        if let Some(first) = first.filter(|first| first.sharding != share.sharding) {
            let [one, other] = [first.sharding, share.sharding].map(StateSharding::name);
            whys.push(format!(
                "replicas share `{one}` of their state in one program and `{other}` in another"
            ));
        }
        if by_place.insert((share.stage.index, share.tensor.index), program).is_some() {
            whys.push(format!("two programs of rank {} in stage {}", share.tensor.index, share.stage.index));
        }
    }
    let (stages, ranks) = first.map_or((0, 0), |share| (share.stage.of, share.tensor.of));
    for at in (0..stages).flat_map(|stage| (0..ranks).map(move |rank| (stage, rank))) {
        if !by_place.contains_key(&at) {
            whys.push(format!("no program of rank {} in stage {}", at.1, at.0));
        }
    }
    if whys.is_empty() {
        let told: BTreeMap<(u64, u64), Vec<Word>> =
            by_place.iter().map(|(at, program)| (*at, said(&program.steps))).collect();
        for stage in 0..stages {
            whys.extend((1..ranks).filter_map(|rank| group_differs(&told, stage, rank)));
        }
        for rank in 0..ranks {
            whys.extend(
                (0..stages).flat_map(|from| (0..stages).map(move |to| (from, to))).filter_map(
                    |(from, to)| lanes_differ(&told[&(from, rank)], &told[&(to, rank)], (from, to)),
                ),
            );
            whys.extend((1..stages).filter_map(|stage| last_differs(&told, stage, rank)));
        }
    }
    let faults: Vec<Fault> = whys.into_iter().map(|why| Fault::Share { why }).collect();
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

/// All that is said, rounds of repeats one after another.
fn said(steps: &[Step]) -> Vec<Word> {
    let mut words = Vec::new();
    for step in steps {
        match step {
            Step::Meet(m) => words.push((m.group, m.said, m.dtype, m.count, m.last)),
            Step::Repeat { times, body, .. } => {
                let round = said(body);
                let rounds = if round.is_empty() { 0 } else { *times };
                (0..rounds).for_each(|_| words.extend(round.iter().copied()));
            }
            _ => {}
        }
    }
    words
}

fn group_differs(told: &BTreeMap<(u64, u64), Vec<Word>>, stage: u64, rank: u64) -> Option<String> {
    let of = |rank: u64| told[&(stage, rank)].iter().filter(|word| word.0 != Group::Pipeline);
    let (mut a, mut b) = (of(0), of(rank));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return None,
            (x, y) if x == y => {}
            (x, y) => {
                let word = |word: Option<&Word>| {
                    word.map_or_else(
                        || "nothing".to_string(),
                        |(_, said, _, count, _)| format!("{said} of {count}"),
                    )
                };
                return Some(format!(
                    "stage {stage}: rank 0 says {} where rank {rank} says {}",
                    word(x),
                    word(y)
                ));
            }
        }
    }
}

fn lanes_differ(from: &[Word], to: &[Word], (sender, receiver): (u64, u64)) -> Option<String> {
    let mut lanes: BTreeMap<u64, [Vec<(Dtype, u64)>; 2]> = BTreeMap::new();
    for (_, said, dtype, count, _) in from {
        if let Said::Send { stage, lane } = said
            && *stage == receiver
        {
            lanes.entry(*lane).or_default()[0].push((*dtype, *count));
        }
    }
    for (_, said, dtype, count, _) in to {
        if let Said::Receive { stage, lane } = said
            && *stage == sender
        {
            lanes.entry(*lane).or_default()[1].push((*dtype, *count));
        }
    }
    let (lane, [sent, heard]) = lanes.into_iter().find(|(_, [sent, heard])| sent != heard)?;
    Some(format!(
        "lane {lane}: stage {sender} sends {} messages that stage {receiver} does not receive so ({} of them)",
        sent.len(),
        heard.len()
    ))
}

fn last_differs(told: &BTreeMap<(u64, u64), Vec<Word>>, stage: u64, rank: u64) -> Option<String> {
    let of = |stage: u64| {
        told[&(stage, rank)].iter().filter(|word| word.1 == Said::FromLastStage).collect::<Vec<_>>()
    };
    (of(0) != of(stage)).then(|| format!("stages 0 and {stage} hear different things from the last"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::{Access, Member, RowOrder, SCHEMA};

    fn buffer(name: &str, kind: BufferKind) -> Buffer {
        Buffer {
            name: name.into(),
            kind,
            dtype: Dtype::F32,
            shape: vec![1, 64],
            pitch: 64,
            bytes: 256,
            offset: (kind == BufferKind::Arena).then_some(0),
            layers: None,
            packing: None,
            column_order: RowOrder::Natural,
            per_replica: false,
        }
    }

    fn arg(buffer: &str, access: Access) -> Option<Arg> {
        let extent_bytes = 256;
        Some(Arg {
            buffer: buffer.into(),
            access,
            offset_bytes: 0,
            layer_stride_bytes: 0,
            extent_bytes,
            boxes: None,
        })
    }

    fn meet(said: Said, x: Option<Arg>, out: Option<Arg>) -> Meeting {
        let group = match said {
            Said::Send { .. } | Said::Receive { .. } | Said::FromLastStage => Group::Pipeline,
            _ => Group::Tensor,
        };
        let name = "m".into();
        Meeting { name, said, group, dtype: Dtype::F32, count: 64, x, out, beside: false, last: false }
    }

    fn program(stage: u64, steps: Vec<Step>) -> GpuProgram {
        let share = Share {
            tensor: Member { index: 0, of: 1 },
            stage: Member { index: stage, of: 2 },
            replicas: 2,
            layers: vec![0],
            parts: BTreeMap::new(),
            sharding: StateSharding::None,
            micros: None,
        };
        GpuProgram {
            schema: SCHEMA.into(),
            version: 1,
            name: "p".into(),
            arch: "sm_80".into(),
            arena_bytes: 256,
            arena_naive_bytes: 256,
            buffers: vec![buffer("a", BufferKind::State), buffer("t", BufferKind::Arena)],
            kernels: Vec::new(),
            steps,
            share: Some(share),
        }
    }

    fn sends(stage: u64, lane: u64) -> Step {
        Step::Meet(Box::new(meet(Said::Send { stage, lane }, arg("a", Access::Read), None)))
    }

    fn receives(stage: u64, lane: u64) -> Step {
        Step::Meet(Box::new(meet(Said::Receive { stage, lane }, None, arg("a", Access::Write))))
    }

    fn told(program: GpuProgram) -> String {
        let faults = program.check().expect_err("it has faults");
        faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn what_is_sent_has_to_be_received() {
        let there = program(0, vec![sends(1, 0), receives(1, 1)]);
        let back = program(1, vec![receives(0, 0), sends(0, 1)]);
        assert_eq!(check_together(&[&there, &back]), Ok(()));
        let other = program(1, vec![receives(0, 2), sends(0, 1)]);
        let faults = check_together(&[&there, &other]).expect_err("a lane differs");
        assert!(faults[0].to_string().contains("lane 0: stage 0 sends 1 messages"), "{faults:?}");
        let faults = check_together(&[&there, &there]).expect_err("a stage is missing");
        assert!(faults[0].to_string().contains("two programs of rank 0 in stage 0"), "{faults:?}");
        assert!(there.check().is_ok() && back.check().is_ok());
    }

    #[test]
    fn meetings_that_cannot_be_held_are_told() {
        assert!(told(program(0, vec![sends(0, 0)])).contains("stage 0 of 2 meets stage 0"));
        assert!(told(program(0, vec![sends(2, 0)])).contains("meets stage 2"));
        let alone = meet(Said::Sum, arg("a", Access::Read), arg("a", Access::Write));
        assert!(told(program(0, vec![Step::Meet(Box::new(alone))])).contains("nobody to meet"));
        let short =
            Meeting { count: 63, ..meet(Said::Send { stage: 1, lane: 0 }, arg("a", Access::Read), None) };
        assert!(told(program(0, vec![Step::Meet(Box::new(short))])).contains("252 bytes are said"));
        let mut whole = program(0, vec![sends(1, 0)]);
        whole.share = None;
        assert!(told(whole).contains("no rank's part"));
    }

    /// Nobody touches what a meeting beside is at before the join, and temporary memory is never at one.
    #[test]
    fn memory_of_a_meeting_beside_is_left_alone() {
        let beside = |buffer: &str| {
            let (x, out) = (arg(buffer, Access::Update), arg(buffer, Access::Update));
            let sum = Meeting { group: Group::Data, beside: true, ..meet(Said::Sum, x, out) };
            Step::Meet(Box::new(sum))
        };
        assert!(program(0, vec![beside("a"), Step::Join, sends(1, 0)]).check().is_ok());
        assert!(told(program(0, vec![beside("a"), sends(1, 0)])).contains("a meeting beside is still at"));
        assert!(told(program(0, vec![receives(1, 0), beside("t")])).contains("does not stay"));
    }
}
