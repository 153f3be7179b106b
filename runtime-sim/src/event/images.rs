//! Memory images: buffers filled from tensors before the run and copied to tensors after it.

use super::engine::Setup;
use super::strip::Strip;
use super::values::{load, store};
use super::walk::Walk;
use crate::program::{Buffer, TensorMap};

/// A buffer that has to do with a tensor, by its number.
type Image<'p> = (&'p Buffer, &'p TensorMap, usize);

/// By class: the buffers with an image.
fn images<'p>(setup: &Setup<'p>, map: impl Fn(&'p Buffer) -> Option<&'p TensorMap>) -> Vec<Vec<Image<'p>>> {
    let classes = setup.program.classes.iter();
    let of_class = classes.map(|class| {
        let images = class.buffers.values().filter_map(|buffer| {
            let map = map(buffer)?;
            let tensor = setup.tensors.iter().position(|(name, _)| *name == map.tensor)?;
            Some((buffer, map, tensor))
        });
        images.collect()
    });
    of_class.collect()
}

/// Fills buffers from tensors.
pub fn preload(setup: &Setup, strip: &mut Strip) {
    let images = images(setup, |buffer| buffer.load.as_ref());
    let members: Vec<(u32, usize)> = strip.members().map(|(pe, class, _)| (pe, class)).collect();
    for (pe, class) in members {
        let at = setup.net.coord(pe);
        for (buffer, map, tensor) in &images[class] {
            let values = &setup.tensors[*tensor].1;
            let walk = Walk::new(&map.dims, &map.index, at.x, at.y);
            let memory = strip.memory_of_mut(pe);
            for n in 0..walk.len().min(u64::from(buffer.elements)) {
                let value = values.get(walk.at(n) as usize).copied().unwrap_or(0.0);
                store(memory, buffer.offset, buffer.dtype, n as usize, value);
            }
        }
    }
}

/// What the host collected and what buffers hold, as tensors.
pub fn read_back(setup: &Setup, strips: &[Strip]) -> Vec<Vec<f32>> {
    let mut tensors: Vec<Vec<f32>> = setup.tensors.iter().map(|(_, values)| values.clone()).collect();
    let lanes = strips.iter().flat_map(|strip| strip.host_out.iter());
    for (tensor, index, value) in lanes.flat_map(|lane| &lane.collected) {
        if let Some(place) = tensors[*tensor as usize].get_mut(*index as usize) {
            *place = *value;
        }
    }
    let images = images(setup, |buffer| buffer.store.as_ref());
    for strip in strips {
        for (pe, class, _) in strip.members() {
            let (at, memory) = (setup.net.coord(pe), strip.memory_of(pe));
            for (buffer, map, tensor) in &images[class] {
                let walk = Walk::new(&map.dims, &map.index, at.x, at.y);
                for n in 0..walk.len().min(u64::from(buffer.elements)) {
                    if let Some(place) = tensors[*tensor].get_mut(walk.at(n) as usize) {
                        *place = load(memory, buffer.offset, buffer.dtype, n as usize);
                    }
                }
            }
        }
    }
    tensors
}
