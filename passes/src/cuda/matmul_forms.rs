//! The forms that a product can be computed in, and which of them is taken: the one that was measured to be the fastest, the
//! one that the caller asks for, or the one of a rule over the sizes.
//!
//! | form | what it is | for |
//! |---|---|---|
//! | `stream-N` | weights streamed past a few rows, N rows of weights a warp | up to 8 rows |
//! | `tiles-MxN` | tensor cores on tiles through `mma.sync` | bf16 |
//! | `deep-MxN` | the same, a tile's depth shared by four warps so that small tiles keep much on its way | bf16, 9 to 64 rows |
//! | `hopper-MxN` | the same through the copy engine and `wgmma` | bf16, `sm_90a`, measured or asked for |
//! | `single` | tiles without tensor cores | f32 |
//! | `library` | cuBLASLt | nothing but a bias and a residual behind the product |
use super::Options;
use super::matmul::Product;
use super::source::constants;
use lapidary_runtime_gpu::program::{Boxes, ChosenBy, Dtype, FormChoice};

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
    /// Warps that share a part and its depth.
    pub warps_k: u64,
    /// Blocks that fit on a multiprocessor (by shared memory and registers).
    pub resident: u64,
    /// Speed relative to the largest tile. Assumed from the ratio of work to copies, not measured.
    rate: f64,
}

const LARGEST: Tile =
    Tile { bm: 128, bn: 256, bk: 64, stages: 3, warps_m: 2, warps_n: 4, warps_k: 1, resident: 1, rate: 1.0 };

/// From large to small. Shared memory: 144, 64, 72, 64 and 72 KiB.
const TILES: [Tile; 5] = [
    LARGEST,
    Tile { bn: 128, bk: 32, stages: 4, warps_n: 2, resident: 2, rate: 0.9, ..LARGEST },
    Tile { bm: 64, bn: 128, warps_n: 2, resident: 2, rate: 0.7, ..LARGEST },
    Tile { bm: 64, bn: 64, stages: 4, warps_n: 2, resident: 2, rate: 0.55, ..LARGEST },
    Tile { bm: 16, bn: 128, stages: 4, warps_m: 1, resident: 2, rate: 0.25, ..LARGEST },
];

/// Rows of a product up to which weights are what has to move: one tile is as high as all of them.
const FEW: u64 = 64;

/// For few rows. Shared memory: 128, 96, 64 and 48 KiB.
const DEEP: [Tile; 4] = [
    Tile { bm: 64, bn: 64, bk: 128, stages: 4, warps_m: 1, warps_n: 2, warps_k: 4, resident: 1, rate: 0.5 },
    Tile { bm: 64, bn: 32, bk: 128, stages: 4, warps_m: 1, warps_n: 1, warps_k: 4, resident: 1, rate: 0.4 },
    Tile { bm: 32, bn: 32, bk: 128, stages: 4, warps_m: 1, warps_n: 1, warps_k: 4, resident: 2, rate: 0.3 },
    Tile { bm: 16, bn: 32, bk: 128, stages: 4, warps_m: 1, warps_n: 1, warps_k: 4, resident: 3, rate: 0.2 },
];

/// A block's part where 64 rows belong to a warpgroup, slices of depth 64 on their way to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct HopperTile {
    pub bm: u64,
    pub bn: u64,
    pub stages: u64,
}

/// Depth of a slice: the 128 bytes of the swizzle.
const HOPPER_DEPTH: u64 = 64;

/// Shared memory: 212, 212 and 170 KiB.
pub(crate) const HOPPER: [HopperTile; 3] = [
    HopperTile { bm: 128, bn: 256, stages: 4 },
    HopperTile { bm: 128, bn: 128, stages: 6 },
    HopperTile { bm: 64, bn: 256, stages: 4 },
];

/// Rows of weights that a warp may stream.
const STREAMS: [u64; 3] = [1, 2, 4];

impl Tile {
    /// Dynamic shared memory, for weights of that many bytes.
    pub fn shared_bytes(&self, weight_bytes: u64) -> u64 {
        // Where warps share a depth all rows of their sums leave at once, else 16 of them.
        let rows = if self.warps_k > 1 { self.bm / self.warps_m } else { 16 };
        let slab = self.threads() / 32 * rows * (self.bn / self.warps_n + 8) * 4;
        (self.stages * (self.bm * 2 + self.bn * weight_bytes) * self.bk).max(slab)
    }

    pub fn threads(&self) -> u64 {
        32 * self.warps_m * self.warps_n * self.warps_k
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

    pub fn blocks(&self, [m, n]: [u64; 2]) -> u64 {
        m.div_ceil(self.bm) * n.div_ceil(self.bn)
    }

    /// What its text is told; `deep` says which sides lie with one row per step of depth.
    pub fn constants(&self, deep: [bool; 2]) -> String {
        let sizes = [("BM", self.bm), ("BN", self.bn), ("BK", HOPPER_DEPTH), ("STAGES", self.stages)];
        constants(&sizes) + &format!("constexpr bool A_DEEP = {}, B_DEEP = {};\n", deep[0], deep[1])
    }

    /// The boxes of one side: of so many rows where they lie along the depth, else of one slice's depth.
    pub fn boxes(&self, deep: bool, [wide, depth]: [u64; 2], pitch: u64, box_wide: u64) -> Boxes {
        let (rows, cols, box_rows) = if deep { (depth, wide, HOPPER_DEPTH) } else { (wide, depth, box_wide) };
        Boxes { rows, cols, pitch_bytes: pitch * 2, box_rows: box_rows as u32, parts: None }
    }
}

impl Form {
    /// The name that programs, measurements and callers use.
    pub fn name(&self) -> String {
        match self {
            Form::Tiles(tile) if tile.warps_k > 1 => format!("deep-{}x{}", tile.bm, tile.bn),
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
    if product.dtype == Dtype::Bf16 && product.m > SMALL && product.m <= FEW {
        forms.extend(deep(product).copied().map(Form::Tiles));
    }
    let boxes = options.hopper && product.dtype == Dtype::Bf16 && !product.int8 && product.first_element == 0;
    if boxes && product.m > SMALL {
        forms.extend(HOPPER.map(Form::Hopper));
    }
    forms.extend((plain && product.m > SMALL && !product.int8).then_some(Form::Library));
    forms
}

/// The tiles for few rows that are no higher than they have to be.
fn deep(product: &Product) -> impl Iterator<Item = &'static Tile> {
    let height = product.m.next_power_of_two().max(16);
    DEEP.iter().filter(move |tile| tile.bm == height)
}

/// Which of some forms is taken, and why: the one that is asked for, the one that was measured to be the fastest, or `rule`'s.
/// A form that is none of them is passed over.
pub(crate) fn choose<F: Copy>(
    possible: &[(String, F)],
    key: String,
    rule: (String, F),
    options: &Options,
) -> (F, FormChoice) {
    let named = |name: Option<&String>| name.and_then(|name| possible.iter().find(|form| form.0 == *name));
    let ((form, taken), by) = match (named(options.form.as_ref()), named(options.measured.get(&key))) {
        (Some(form), _) => (form.clone(), ChosenBy::Asked),
        (None, Some(form)) => (form.clone(), ChosenBy::Measured),
        (None, None) => (rule, ChosenBy::Rule),
    };
    (taken, FormChoice { product: key, form, by })
}

/// The form of a product, and how it was chosen.
pub(crate) fn choose_form(
    product: &Product,
    key: String,
    plain: bool,
    options: &Options,
) -> (Form, FormChoice) {
    let named = |form: Form| (form.name(), form);
    let possible: Vec<(String, Form)> = forms(product, plain, options).into_iter().map(named).collect();
    let library = options.library && possible.iter().any(|(_, form)| *form == Form::Library);
    let rule = if library { Form::Library } else { rule(product, options) };
    choose(&possible, key, named(rule), options)
}

/// The form for a product's size: streams for few rows, single precision for f32, for some rows the widest of the tiles that
/// share a depth and still give every processor a block, else the tile with the least estimated time.
fn rule(product: &Product, options: &Options) -> Form {
    if product.m <= SMALL {
        return Form::Stream(if product.n >= 8192 { 4 } else { 2 });
    }
    if product.dtype == Dtype::F32 {
        return Form::Single;
    }
    if product.m <= FEW {
        let fills = |tile: &&Tile| tile.blocks(product) >= options.processors;
        let narrow = deep(product).last();
        return Form::Tiles(*deep(product).find(fills).or(narrow).unwrap_or(&TILES[4]));
    }
    let times = TILES.iter().map(|tile| (tile, tile.time(product, options.processors.max(1))));
    let best = times.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(&TILES[0], |(tile, _)| tile);
    Form::Tiles(*best)
}
