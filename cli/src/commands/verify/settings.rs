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

/// Every grid in both modes, and every number type.
fn on_wafers(spec: &ModelSpec, setting: impl Fn(Mup, Precision) -> Setting) -> Vec<Setting> {
    let folds: &[Mup] = match spec.multipliers == Multipliers::default() {
        true => &[Mup::Fold],
        false => &[Mup::Keep, Mup::Fold],
    };
    let modes = [Mode::WeightStreaming, Mode::LayerPipelined];
    let mut settings = Vec::new();
    for grid in GRIDS {
        for mode in modes {
            let on = |mup, precision| Setting { grid, mode, ..setting(mup, precision) };
            settings.extend(folds.iter().map(|mup| on(*mup, Precision::F32)));
            settings.extend([Precision::F16, Precision::Bf16].map(|precision| on(Mup::Fold, precision)));
        }
    }
    settings
}
