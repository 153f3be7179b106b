//! Templates and skeletons, each kept once: what is the same has the same number, in all stretches.

use super::skeleton::{Item, Items, Skeleton, Template, totals};
use crate::lower::Env;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Items, each list once.
#[derive(Default)]
pub struct Interned {
    known: BTreeMap<Vec<Item>, Rc<Items>>,
    bare: BTreeMap<Vec<Item>, u32>,
    /// By two numbers: what takes as many steps as the longer of the two, op by op.
    longer: BTreeMap<(u32, u32), Rc<Items>>,
}

impl Interned {
    /// Some items.
    pub fn of(&mut self, all: Vec<Item>) -> Rc<Items> {
        if let Some(known) = self.known.get(&all) {
            return Rc::clone(known);
        }
        let bare = all.iter().map(|item| if let Item::Op(_) = item { Item::Op(0) } else { *item }).collect();
        let next = self.bare.len() as u32;
        let bare = *self.bare.entry(bare).or_insert(next);
        let (number, totals) = (self.known.len() as u32, totals(&all));
        let items = Rc::new(Items { number, bare, all: all.clone(), totals });
        self.known.insert(all, Rc::clone(&items));
        items
    }

    /// Of two lists that differ in the steps of ops only, the ops with more steps.
    pub fn longer(&mut self, a: &Rc<Items>, b: &Rc<Items>) -> Rc<Items> {
        if a.number == b.number {
            return Rc::clone(a);
        }
        let key = (a.number, b.number);
        if !self.longer.contains_key(&key) {
            let all = a.all.iter().zip(&b.all).map(|(a, b)| *a.max(b)).collect();
            let longer = self.of(all);
            self.longer.insert(key, longer);
        }
        Rc::clone(&self.longer[&key])
    }
}

/// All templates that were met, each once, and what they are at places.
#[derive(Default)]
pub struct Templates {
    all: Vec<Rc<Template>>,
    numbers: BTreeMap<Rc<Template>, u32>,
    /// By template: skeletons by the lengths that depend on the place.
    skeletons: Vec<BTreeMap<Vec<i64>, Rc<Skeleton>>>,
    pub items: Interned,
    values: Vec<i64>,
}

impl Templates {
    /// The number of a template.
    pub fn number(&mut self, template: Template) -> u32 {
        let next = self.all.len() as u32;
        if let Some(known) = self.numbers.get(&template) {
            return *known;
        }
        let template = Rc::new(template);
        self.all.push(Rc::clone(&template));
        self.skeletons.push(BTreeMap::new());
        self.numbers.insert(template, next);
        next
    }

    /// The template of a number.
    pub fn get(&self, number: u32) -> Option<&Template> {
        self.all.get(number as usize).map(|template| &**template)
    }

    /// A template at a place.
    pub fn at(&mut self, number: u32, x: u32, y: u32) -> Option<Rc<Skeleton>> {
        let template = self.all.get(number as usize)?;
        let known = &mut self.skeletons[number as usize];
        let env = Env { x: x.into(), y: y.into(), ..Env::default() };
        self.values.clear();
        self.values.extend(template.placed.iter().map(|length| length.at(&env)));
        if let Some(skeleton) = known.get(&self.values) {
            return Some(Rc::clone(skeleton));
        }
        let skeleton = Rc::new(template.at(&env, &mut self.items));
        known.insert(self.values.clone(), Rc::clone(&skeleton));
        Some(skeleton)
    }
}
