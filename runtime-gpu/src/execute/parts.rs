//! The tensors of a rank: of a whole model's tensors, the rows or columns that the rank holds, under its own layer numbers.
use super::weights::{Tensor, Tensors};
use crate::program::Share;
use lapidary_models::shard::{Part, part_of, whole_name};

/// What a rank has of a model's tensors.
pub struct Parts<'t> {
    whole: &'t dyn Tensors,
    share: &'t Share,
}

impl<'t> Parts<'t> {
    /// Those of the rank with that share.
    pub fn new(whole: &'t dyn Tensors, share: &'t Share) -> Parts<'t> {
        Parts { whole, share }
    }
}

impl Tensors for Parts<'_> {
    fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        let found = self.whole.tensor(&whole_name(name, &self.share.layers))?;
        match part_of(&self.share.parts, name) {
            Some(part) if found.shape.get(part.axis) == Some(&part.whole) => Some(cut(found, part)),
            // A tensor of another shape is refused by who asked for it.
            _ => Some(found),
        }
    }
}

/// The part of a tensor; rows and columns that the rank only pads are zero.
fn cut(whole: Tensor<'_>, part: Part) -> Tensor<'_> {
    let shape = part.shape(&whole.shape);
    let inner: u64 = whole.shape.iter().skip(part.axis + 1).product();
    let [run, used, all] = [part.held, part.length, part.whole].map(|n| n * inner);
    let read = move |first: u64, out: &mut [f32]| {
        let (mut at, mut rest) = (first, out);
        while !rest.is_empty() {
            let (row, col) = (at / run.max(1), at % run.max(1));
            let filled = col < used;
            let left = (if filled { used - col } else { run - col }).min(rest.len() as u64);
            let (now, later) = rest.split_at_mut(left as usize);
            match filled {
                true => (whole.read)(row * all + part.start * inner + col, now),
                false => now.fill(0.0),
            }
            (at, rest) = (at + left, later);
        }
    };
    Tensor { shape, read: Box::new(read) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Member;
    use lapidary_models::shard::StateSharding;

    /// Three rows of five columns; every element is its place.
    struct Counting;

    impl Tensors for Counting {
        fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
            let base = if name == "layers.6.w" { 100.0 } else { 0.0 };
            let read = move |first: u64, out: &mut [f32]| {
                out.iter_mut().enumerate().for_each(|(i, x)| *x = base + (first + i as u64) as f32);
            };
            Some(Tensor { shape: vec![3, 5], read: Box::new(read) })
        }
    }

    #[test]
    fn a_rank_sees_its_rows_and_columns_under_its_own_layers() {
        let member = Member { index: 0, of: 2 };
        let part = |axis, start, length, held| Part { axis, start, length, held, whole: [3, 5][axis] };
        let parts = [("layers.*.w".to_string(), part(1, 3, 2, 3)), ("table".to_string(), part(0, 2, 1, 2))];
        let share = Share {
            tensor: member,
            stage: member,
            replicas: 1,
            layers: vec![4, 6],
            parts: parts.into(),
            sharding: StateSharding::None,
            micros: None,
        };
        let own = Parts::new(&Counting, &share);
        let all = |name: &str| {
            let tensor = own.tensor(name).expect("a tensor");
            let mut values = vec![f32::NAN; tensor.shape.iter().product::<u64>() as usize];
            (tensor.read)(0, &mut values);
            (tensor.shape, values)
        };
        assert_eq!(
            all("layers.1.w"),
            (vec![3, 3], vec![103.0, 104.0, 0.0, 108.0, 109.0, 0.0, 113.0, 114.0, 0.0])
        );
        assert_eq!(all("table"), (vec![2, 5], vec![10.0, 11.0, 12.0, 13.0, 14.0, 0.0, 0.0, 0.0, 0.0, 0.0]));
        assert_eq!(all("norm").0, [3, 5]);
    }
}
