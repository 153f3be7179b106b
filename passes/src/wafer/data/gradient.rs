//! What the host does with what leaves a training step, and what it makes of labels.

use super::HostData;
use crate::wafer::placed::Parameter;

impl HostData {
    /// The values of labels and of their shares, where `labels` has one for each token and a negative one counts for
    /// nothing; `None` for other data. `count` is the number of labels that the mean is over: those of the whole batch
    /// where these are a part of it.
    pub fn label_values(&self, labels: &[i32], count: u64) -> Option<Vec<f32>> {
        let counts = |label: &i32| *label >= 0;
        match self {
            HostData::Labels { .. } => Some(labels.iter().map(|label| *label as f32).collect()),
            HostData::Shares { .. } => {
                let share = (1.0 / count.max(1) as f64) as f32;
                Some(labels.iter().map(|label| if counts(label) { share } else { 0.0 }).collect())
            }
            _ => None,
        }
    }

    /// The parameter that this is a gradient of, if it is one.
    pub fn gradient_of(&self) -> Option<&Parameter> {
        match self {
            HostData::Gradient { parameter, .. } => Some(parameter),
            HostData::LookupGradient { table, .. } | HostData::PositionsGradient { table, .. } => Some(table),
            _ => None,
        }
    }

    /// Adds a gradient that left the wafer as `found` to the sums of its parameter; `ids` are the token ids. `None`,
    /// with nothing or a part added, where this is no gradient or the sums are too short.
    pub fn add_gradient(&self, found: &[f32], ids: &[i32], sums: &mut [f32]) -> Option<()> {
        let scale = self.gradient_of()?.scale;
        let mut add = |first: u64, row: &[f32]| {
            let first = usize::try_from(first).ok()?;
            let sums = sums.get_mut(first..first.checked_add(row.len())?)?;
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += (f64::from(*value) * scale) as f32;
            }
            Some(())
        };
        match self {
            HostData::LookupGradient { columns, .. } => {
                let rows = found.chunks(*columns as usize).zip(ids);
                rows.map(|(row, id)| add(u64::try_from(*id).ok()? * u64::from(*columns), row)).collect()
            }
            HostData::PositionsGradient { columns, length, offset, .. } => {
                let position = |token: usize| token as u64 % u64::from(*length) + offset;
                let rows = found.chunks(*columns as usize).enumerate();
                rows.map(|(token, row)| add(position(token) * u64::from(*columns), row)).collect()
            }
            _ => add(0, found),
        }
    }
}
