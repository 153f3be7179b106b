//! Which class each PE is in.

use crate::check::{CheckError, Fault};
use crate::program::{Coord, WaferProgram};

/// At most this many PEs in two classes are reported.
const MANY: usize = 32;

/// No class.
pub const NOBODY: u16 = u16::MAX;

/// The class of each PE, row by row; [`NOBODY`] where there is none. Regions lie inside the grid.
pub fn cover(program: &WaferProgram) -> Result<Vec<u16>, Vec<CheckError>> {
    let width = program.width as usize;
    let mut class_of = vec![NOBODY; width * program.height as usize];
    let mut errors = Vec::new();
    for (index, class) in program.classes.iter().enumerate() {
        for region in &class.regions {
            for y in (0..region.rows).map(|j| region.y + j * region.step_y) {
                let row = &mut class_of[y as usize * width..][..width];
                let places = row.iter_mut().enumerate().skip(region.x as usize);
                for (x, place) in places.step_by(region.step_x as usize).take(region.columns as usize) {
                    if *place != NOBODY && errors.len() < MANY {
                        let name = |c: usize| program.classes[c].name.clone();
                        let fault =
                            Fault::TwoClasses { first: name(usize::from(*place)), second: name(index) };
                        errors.push(CheckError::new(fault).at(Coord { x: x as u32, y }));
                    }
                    *place = index as u16;
                }
            }
        }
    }
    if errors.is_empty() { Ok(class_of) } else { Err(errors) }
}
