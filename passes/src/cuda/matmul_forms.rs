//! The forms that a product can be computed in, and which of them is taken: the one that was measured to be the fastest, the
//! one that the caller asks for, or the one of a rule over the sizes.
//!
//! | form | what it is | for |
//! |---|---|---|
//! | `stream-N` | weights streamed past a few rows, N rows of weights a warp | up to 8 rows |
//! | `tiles-MxN` | tensor cores on tiles through `mma.sync` | bf16 |
//! | `hopper-MxN` | the same through the copy engine and `wgmma` | bf16, `sm_90a`, measured or asked for |
//! | `single` | tiles without tensor cores | f32 |
//! | `library` | cuBLASLt | nothing but a bias and a residual behind the product |
use super::Options;
use super::matmul::Product;
use lapidary_runtime_gpu::program::{ChosenBy, Dtype, FormChoice};

/// Rows of a product up to which weights are streamed past the rows instead of through tiles.
pub(crate) const SMALL: u64 = 8;

/// How a product is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Form {
    /// Tensor cores on tiles.
    Tiles(Tile),
    /// The same with Hopper's instructions.
    Hopper(HopperTile),
    /// Weights streamed past a few rows; the number is rows of weights per warp.
    Stream(u64),
    /// Single precision on tiles.
    Single,
    /// The vendor's library.
    Library,
}

/// Size of a block's part and how its warps share it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Tile {
    pub bm: u64,
    pub bn: u64,
    pub bk: u64,
    pub stages: u64,
    pub warps_m: u64,
    pub warps_n: u64,
    /// Blocks that fit on a multiprocessor (by shared memory and registers).
    pub resident: u64,
    /// Speed relative to the largest tile. Assumed from the ratio of work to copies, not measured.
    rate: f64,
}

/// From large to small. Shared memory: 144, 64, 72, 64 and 72 KiB.
const TILES: [Tile; 5] = [
    Tile { bm: 128, bn: 256, bk: 64, stages: 3, warps_m: 2, warps_n: 4, resident: 1, rate: 1.0 },
    Tile { bm: 128, bn: 128, bk: 32, stages: 4, warps_m: 2, warps_n: 2, resident: 2, rate: 0.9 },
    Tile { bm: 64, bn: 128, bk: 64, stages: 3, warps_m: 2, warps_n: 2, resident: 2, rate: 0.7 },
    Tile { bm: 64, bn: 64, bk: 64, stages: 4, warps_m: 2, warps_n: 2, resident: 2, rate: 0.55 },
    Tile { bm: 16, bn: 128, bk: 64, stages: 4, warps_m: 1, warps_n: 4, resident: 2, rate: 0.25 },
];

/// A block's part where 64 rows belong to a warpgroup, slices of depth 64 on their way to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct HopperTile {
    pub bm: u64,
    pub bn: u64,
    pub stages: u64,
}

/// Shared memory: 212, 212 and 170 KiB.
const HOPPER: [HopperTile; 3] = [
    HopperTile { bm: 128, bn: 256, stages: 4 },
    HopperTile { bm: 128, bn: 128, stages: 6 },
    HopperTile { bm: 64, bn: 256, stages: 4 },
];

/// Rows of weights that a warp may stream.
const STREAMS: [u64; 3] = [1, 2, 4];

impl Tile {
    /// Dynamic shared memory, for weights of that many bytes.
    pub fn shared_bytes(&self, weight_bytes: u64) -> u64 {
        let slab = self.warps_m * self.warps_n * 16 * (self.bn / self.warps_n + 8) * 4;
        (self.stages * (self.bm * 2 + self.bn * weight_bytes) * self.bk).max(slab)
    }

    pub fn blocks(&self, product: &Product) -> u64 {
        product.m.div_ceil(self.bm) * product.n.div_ceil(self.bn)
    }

    /// Time in units of the largest tile's multiply-adds: full waves of resident blocks.
    fn time(&self, product: &Product, processors: u64) -> f64 {
        let waves = self.blocks(product).div_ceil(processors * self.resident);
        (waves * self.resident * self.bm * self.bn) as f64 / self.rate
    }
}

impl HopperTile {
    /// Dynamic shared memory: slices, a corner of 16 rows of 40 floats for each multiplying warp, two barriers a stage.
    pub fn shared_bytes(&self) -> u64 {
        self.stages * (self.bm + self.bn) * 128 + self.bm / 16 * 16 * 40 * 4 + 16 * self.stages
    }

    pub fn threads(&self) -> u64 {
        128 * (self.bm / 64 + 1)
    }

    pub fn blocks(&self, product: &Product) -> u64 {
        product.m.div_ceil(self.bm) * product.n.div_ceil(self.bn)
    }
}

impl Form {
    /// The name that programs, measurements and callers use.
    pub fn name(&self) -> String {
        match self {
            Form::Tiles(tile) => format!("tiles-{}x{}", tile.bm, tile.bn),
            Form::Hopper(tile) => format!("hopper-{}x{}", tile.bm, tile.bn),
            Form::Stream(rows) => format!("stream-{rows}"),
            Form::Single => "single".into(),
            Form::Library => "library".into(),
        }
    }
}

/// Every form that can compute a product. `plain`: the library can do what stands behind it.
pub(crate) fn forms(product: &Product, plain: bool, options: &Options) -> Vec<Form> {
    let mut forms = Vec::new();
    if product.m <= SMALL {
        forms.extend(STREAMS.map(Form::Stream));
    }
    if product.dtype == Dtype::F32 {
        forms.extend((product.m > SMALL).then_some(Form::Single));
    } else {
        // A tile that is mostly empty loses to streaming.
        forms
            .extend(TILES.iter().filter(|tile| product.m > SMALL || tile.bm == 16).copied().map(Form::Tiles));
    }
    let boxes = options.hopper && product.dtype == Dtype::Bf16 && !product.int8 && product.first_element == 0;
    if boxes && product.m > SMALL {
        forms.extend(HOPPER.map(Form::Hopper));
    }
    forms.extend((plain && product.m > SMALL && !product.int8).then_some(Form::Library));
    forms
}

/// The form of a product, and how it was chosen.
pub(crate) fn choose(product: &Product, key: String, plain: bool, options: &Options) -> (Form, FormChoice) {
    let possible = forms(product, plain, options);
    let named = |name: Option<&String>| {
        name.and_then(|name| possible.iter().find(|form| form.name() == *name)).copied()
    };
    let (form, by) = match (named(options.form.as_ref()), named(options.measured.get(&key))) {
        (Some(form), _) => (form, ChosenBy::Asked),
        (None, Some(form)) => (form, ChosenBy::Measured),
        (None, None) if options.library && possible.contains(&Form::Library) => {
            (Form::Library, ChosenBy::Rule)
        }
        (None, None) => (rule(product, options), ChosenBy::Rule),
    };
    (form, FormChoice { product: key, form: form.name(), by })
}

/// The form for a product's size: streams for few rows, single precision for f32, else the tile with the least estimated time.
fn rule(product: &Product, options: &Options) -> Form {
    if product.m <= SMALL {
        return Form::Stream(if product.n >= 8192 { 4 } else { 2 });
    }
    if product.dtype == Dtype::F32 {
        return Form::Single;
    }
    let times = TILES.iter().map(|tile| (tile, tile.time(product, options.processors.max(1))));
    let best = times.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(&TILES[0], |(tile, _)| tile);
    Form::Tiles(*best)
}
