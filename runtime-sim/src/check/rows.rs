//! Which rows are looked at PE by PE, and which of them each other row is like.

use super::periods::Periods;
use crate::lower::LoweredClass;
use crate::network::{Alike, Likeness, Line, Looks};
use crate::program::{Direction, Port, Trigger, WaferProgram};

/// Rows by what has to be proved of them.
pub struct Rows {
    /// Per row: whether its PEs are looked at.
    pub traced: Vec<bool>,
    /// Per row: the traced row that looks the same, itself unless its senders are not all traced.
    pub like: Vec<u32>,
    /// Lines of which few periods are traced.
    pub lines: Vec<Periods>,
}

/// Inputs of a class that fit the mask of arrivals.
pub const SLOTS: usize = 32;

impl Rows {
    /// One group of rows for each kind; all rows where words pass switches, which decide at run time, and where the host
    /// sends from the west or the east: its words may go on to rows that another does not reach.
    pub fn choose(program: &WaferProgram, class_of: &[u16], classes: &[LoweredClass]) -> Self {
        Rows::of_groups(program, class_of, classes, |_, _| None)
    }

    /// The same without the rows of lines that are like others; none if there is none to leave out.
    pub fn choose_fewer(program: &WaferProgram, class_of: &[u16], classes: &[LoweredClass]) -> Option<Self> {
        let controls = |class: &LoweredClass| {
            class.tasks.iter().any(|task| matches!(task.trigger, Trigger::Control { .. }))
        };
        if classes.iter().any(controls) {
            return None;
        }
        let rows = Rows::of_groups(program, class_of, classes, |looks, group| {
            Line::in_group(program, class_of, (looks, Likeness::Proof), group, &|_| 0.0).and_then(Periods::of)
        });
        (!rows.lines.is_empty()).then_some(rows)
    }

    fn of_groups(
        program: &WaferProgram,
        class_of: &[u16],
        classes: &[LoweredClass],
        line: impl Fn(&Looks, &[u32]) -> Option<Periods>,
    ) -> Self {
        let switches = program.classes.iter().flat_map(|c| c.routes.values()).any(|r| r.positions.len() > 1);
        let from_the_side = program
            .host
            .iter()
            .any(|host| host.direction == Direction::In && matches!(host.edge, Port::West | Port::East));
        if switches || from_the_side || classes.iter().any(|c| c.inputs.len() > SLOTS) {
            return Rows::all(program);
        }
        let alike = Alike::of(program, class_of, classes, Likeness::Proof);
        let mut rows = Rows { traced: vec![false; program.height as usize], ..Rows::all(program) };
        for groups in &alike.kinds {
            let line = line(&alike.looks, &groups[0]);
            rows.lines.extend(line);
            for &y in &groups[0] {
                rows.traced[y as usize] = !line.is_some_and(|line| line.left_out().contains(&y));
            }
            for (y, first) in groups.iter().flat_map(|group| group.iter().zip(&groups[0])) {
                rows.like[*y as usize] = line.map_or(*first, |line| line.like(*first));
            }
        }
        rows
    }

    /// Whether every row is looked at.
    pub fn all_traced(&self) -> bool {
        self.traced.iter().all(|traced| *traced)
    }

    /// Every row for itself.
    pub fn all(program: &WaferProgram) -> Self {
        let (traced, like) = (vec![true; program.height as usize], (0..program.height).collect());
        Rows { traced, like, lines: Vec::new() }
    }
}
