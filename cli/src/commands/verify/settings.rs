//! The switches of a run, and all of them that change a device's program.

use crate::args::{Device, Precision};
use crate::host::Switches;
use crate::wafer::{Grid, Mode};
use lapidary_models::ModelSpec;
use lapidary_models::spec::Multipliers;
use lapidary_passes::fusion::Rule;
use lapidary_passes::{Fusion, Mup};
use lapidary_runtime_cpu::Engine;

/// How one run is made.
#[derive(Clone)]
pub struct Setting {
    /// Passes.
    pub switches: Switches,
    /// What runs row functions of the host.
    pub engine: Engine,
    /// Numbers.
    pub precision: Precision,
    /// PEs of a simulated wafer.
    pub grid: Grid,
    /// Where a simulated wafer has its weights.
    pub mode: Mode,
}

/// The grids that every switch of a simulated wafer is tried on: small, wide, high and large. The largest comes first, so
/// that no thread is left alone with it at the end.
const GRIDS: [Grid; 5] = [
    Grid { width: 64, height: 64 },
    Grid { width: 8, height: 8 },
    Grid { width: 16, height: 16 },
    Grid { width: 20, height: 9 },
    Grid { width: 7, height: 24 },
];

/// Every switch that changes a device's program. Where a model has no multipliers, folding them changes none.
pub fn every(device: Device, spec: &ModelSpec) -> Vec<Setting> {
    let setting = |mup, fusion, engine, precision| Setting {
        switches: Switches { mup, fusion },
        engine,
        precision,
        grid: Grid::DEFAULT,
        mode: Mode::WeightStreaming,
    };
    if device == Device::WaferSim {
        return on_wafers(spec, |mup, precision| setting(mup, Fusion::On, Engine::Compiled, precision));
    }
    let mut settings = Vec::new();
    for mup in [Mup::Keep, Mup::Fold] {
        let setting = |fusion, engine, precision| setting(mup, fusion, engine, precision);
        if device == Device::Cuda {
            // Attention whose scores are a tensor of their own has no kernels outside of training.
            settings.push(setting(Fusion::On, Engine::Compiled, Precision::F32));
            continue;
        }
        if device != Device::Cpu {
            settings.extend(
                [Precision::F64, Precision::F32].map(|p| setting(Fusion::Off, Engine::Interpreted, p)),
            );
            continue;
        }
        let compiled = |fusion| setting(fusion, Engine::Compiled, Precision::F32);
        settings.extend([Fusion::On, Fusion::Off].map(|f| setting(f, Engine::Interpreted, Precision::F32)));
        settings.extend([Fusion::On, Fusion::Off].map(compiled));
        let options = |what: &'static str| Rule::ALL.map(|r| Fusion::Options(format!("{what}={}", r.name())));
        settings.extend(options("only").map(compiled));
        settings.extend(options("without").map(compiled));
    }
    settings
}

/// Every grid in both modes; every number type and form of muP on all but the largest, of which a pass takes minutes.
fn on_wafers(spec: &ModelSpec, setting: impl Fn(Mup, Precision) -> Setting) -> Vec<Setting> {
    let keeps: &[Mup] = if spec.multipliers == Multipliers::default() { &[] } else { &[Mup::Keep] };
    let modes = [Mode::WeightStreaming, Mode::LayerPipelined];
    let mut settings = Vec::new();
    for grid in GRIDS {
        for mode in modes {
            let on = |mup, precision| Setting { grid, mode, ..setting(mup, precision) };
            settings.push(on(Mup::Fold, Precision::F32));
            if grid == GRIDS[0] {
                continue;
            }
            settings.extend(keeps.iter().map(|mup| on(*mup, Precision::F32)));
            settings.extend([Precision::F16, Precision::Bf16].map(|precision| on(Mup::Fold, precision)));
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapidary_models::builtin;

    #[test]
    fn every_grid_is_tried_in_both_modes_and_small_ones_with_every_number() {
        for (name, count) in [("amber", 26), ("crystalcoder", 34)] {
            let settings = every(Device::WaferSim, &builtin(name).unwrap());
            assert_eq!(settings.len(), count, "{name}");
            for (grid, mode) in
                GRIDS.into_iter().flat_map(|g| [(g, Mode::WeightStreaming), (g, Mode::LayerPipelined)])
            {
                let here = settings.iter().filter(|setting| setting.grid == grid && setting.mode == mode);
                let numbers: Vec<Precision> = here.map(|setting| setting.precision).collect();
                let wanted = match grid == GRIDS[0] {
                    true => &[Precision::F32][..],
                    false => &[Precision::F32, Precision::F16, Precision::Bf16],
                };
                assert!(
                    wanted.iter().all(|precision| numbers.contains(precision)),
                    "{name} {grid} {numbers:?}"
                );
            }
        }
        assert!(GRIDS.iter().any(|grid| grid.width != grid.height));
    }
}
