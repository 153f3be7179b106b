//! The routes of all classes, by colour.

use super::PORTS;
use crate::program::{Class, Colour, Port, Route, WaferProgram};

/// Routes by class and colour.
pub struct Routes<'a> {
    /// How many colours there are.
    colours: usize,
    all: Vec<Option<&'a Route>>,
    /// Those without a switch.
    fixed: Vec<Option<Fixed>>,
}

/// A route without a switch.
#[derive(Clone, Copy)]
pub struct Fixed {
    /// Where words come from.
    pub from: Port,
    to: [Port; PORTS.len()],
    count: u8,
}

impl<'a> Routes<'a> {
    /// Those of a program.
    pub fn of(program: &'a WaferProgram) -> Self {
        let most = |class: &Class| class.routes.keys().map(|colour| usize::from(colour.0) + 1).max();
        let colours = program.classes.iter().filter_map(most).max().unwrap_or(0);
        let mut all = vec![None; colours * program.classes.len()];
        for (class, routes) in program.classes.iter().zip(all.chunks_mut(colours.max(1))) {
            class.routes.iter().for_each(|(colour, route)| routes[usize::from(colour.0)] = Some(route));
        }
        let fixed = all.iter().map(|route| Fixed::of((*route)?)).collect();
        Routes { colours, all, fixed }
    }

    /// The route of a colour in a class, if there is one.
    pub fn of_class(&self, class: u16, colour: Colour) -> Option<&'a Route> {
        self.all.get(self.place(class, colour)?).copied().flatten()
    }

    /// The same if it has no switch.
    pub fn fixed(&self, class: u16, colour: Colour) -> Option<Fixed> {
        self.fixed.get(self.place(class, colour)?).copied().flatten()
    }

    fn place(&self, class: u16, colour: Colour) -> Option<usize> {
        let colour = usize::from(colour.0);
        (colour < self.colours).then_some(usize::from(class) * self.colours + colour)
    }
}

impl Fixed {
    fn of(route: &Route) -> Option<Fixed> {
        let [position] = &route.positions[..] else { return None };
        let mut to = [Port::Ramp; PORTS.len()];
        to.get_mut(..position.to.len())?.copy_from_slice(&position.to);
        Some(Fixed { from: position.from, to, count: position.to.len() as u8 })
    }

    /// Where they go.
    pub fn to(&self) -> &[Port] {
        &self.to[..usize::from(self.count)]
    }
}
