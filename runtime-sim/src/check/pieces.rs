//! Names in pieces: a piece is looked at once by itself; in a class only what it needs of the class is looked up.

use super::fault::{CheckError, Fault};
use super::names::Names;
use crate::program::{
    Affine, Buffer, Class, Colour, Piece, Region, Shared, Stmt, Task, Trigger, Uses, WaferProgram, Wire,
};
use lapidary_models::dtype::DType;
use std::collections::{BTreeMap, BTreeSet};

/// Pieces without a fault of their own, and what each needs, by where it lies.
#[derive(Default)]
pub struct Pieces<'a> {
    sound: BTreeMap<usize, &'a Uses<'a>>,
    /// Pieces and memories, by where they lie, that have all buffers of the piece.
    fitting: BTreeSet<(usize, usize)>,
    /// Pieces that hold pieces: that has been said.
    refused: BTreeSet<usize>,
}

impl<'a> Pieces<'a> {
    /// Those of a program. Two pieces of one name and pieces in pieces are faults.
    pub fn of(
        program: &'a WaferProgram,
        uses: &'a BTreeMap<usize, Uses<'a>>,
        errors: &mut Vec<CheckError>,
    ) -> Self {
        let mut by_name: BTreeMap<&str, &Shared<Piece>> = BTreeMap::new();
        let mut pieces = Pieces::default();
        let bodies = |class: &'a Class| class.tasks.iter().flat_map(|task| &task.body);
        let stmts = program.classes.iter().flat_map(|class| bodies(class).map(move |stmt| (class, stmt)));
        let (mut seen, mut met) = (BTreeSet::new(), BTreeSet::new());
        for (class, stmt) in stmts {
            let Stmt::Piece(piece) = stmt else { continue };
            let pair = (piece.address(), class.buffers.address());
            if !met.insert(pair) {
                continue;
            }
            let has = |name: &&str| class.buffers.contains_key(*name);
            if uses.get(&piece.address()).is_some_and(|uses| uses.buffers.iter().all(has)) {
                pieces.fitting.insert(pair);
            }
            if !seen.insert(piece.address()) {
                continue;
            }
            if **by_name.entry(&piece.name).or_insert(piece) != *piece {
                let (what, name) = ("piece", piece.name.clone());
                errors.push(CheckError::new(Fault::Duplicate { what, name }));
            }
            if holds_pieces(&piece.body) {
                let what = format!("piece `{}` uses another piece", piece.name);
                errors.push(CheckError::new(Fault::Malformed { what }));
                pieces.refused.insert(piece.address());
            } else if let Some(uses) =
                uses.get(&piece.address()).filter(|uses| is_sound(program, piece, uses))
            {
                pieces.sound.insert(piece.address(), uses);
            }
        }
        pieces
    }

    /// Whether a piece has no fault of its own, and a class has all that it needs; or all has been said of it.
    pub fn are_known(
        &self,
        piece: &Shared<Piece>,
        class: &Class,
        task: &Task,
        (inputs, outputs): (&[Colour], &[Colour]),
    ) -> bool {
        let local = |name: &&str| {
            class.tasks.iter().find(|t| t.name == **name).is_some_and(|t| t.trigger == Trigger::Local)
        };
        let at = piece.address();
        let sound = |uses: &Uses| {
            self.fitting.contains(&(at, class.buffers.address()))
                && uses.inputs.iter().all(|colour| inputs.binary_search(colour).is_ok())
                && uses.outputs.iter().all(|colour| outputs.binary_search(colour).is_ok())
                && uses.tasks.iter().all(local)
                && (!uses.trigger || matches!(task.trigger, Trigger::Data { .. }))
        };
        self.refused.contains(&at) || self.sound.get(&at).copied().is_some_and(sound)
    }
}

fn holds_pieces(body: &[Stmt]) -> bool {
    body.iter().any(|stmt| match stmt {
        Stmt::Piece(_) => true,
        Stmt::Loop { body, .. } => holds_pieces(body),
        _ => false,
    })
}

/// Whether a piece has no fault in a class that has all that it needs.
fn is_sound(program: &WaferProgram, piece: &Piece, uses: &Uses) -> bool {
    let mut class = Class::new("", Region::pe(0, 0));
    class.buffers = buffers(uses).into();
    let task = |name: &str, trigger| Task {
        name: name.into(),
        trigger,
        times: Affine::constant(1),
        body: Vec::new(),
    };
    class.tasks = uses.tasks.iter().map(|name| task(name, Trigger::Local)).collect();
    let trigger = match uses.trigger {
        true => Trigger::Data { colour: Colour(0), wire: Wire::F32 },
        false => Trigger::Start,
    };
    let inputs = uses.inputs.iter().copied().collect();
    let outputs = uses.outputs.iter().copied().collect();
    let (pieces, mut errors) = (Pieces::default(), Vec::new());
    let mut names = Names { program, class: &class, inputs, outputs, pieces: &pieces, errors: &mut errors };
    names.body(&task("", trigger), &piece.body, 0);
    errors.is_empty()
}

fn buffers(uses: &Uses) -> BTreeMap<String, Buffer> {
    uses.buffers.iter().map(|name| (name.to_string(), Buffer::new(DType::F32, 1, 0))).collect()
}
