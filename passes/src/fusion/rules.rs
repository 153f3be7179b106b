//! The rules of fusion by name, so that each can be switched off.

use std::collections::BTreeSet;
use std::fmt;

/// Why a merge is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Pointwise ops over one shape share a loop.
    Elementwise,
    /// Pointwise ops join the reduction over the same rows.
    Row,
    /// Pointwise and row ops join the lookup that makes their rows.
    Gather,
    /// Pointwise ops join the contraction that makes their tile.
    Epilogue,
    /// Contractions over the same left operand become one.
    Siblings,
    /// Softmax over the axis that the next contraction sums has a streaming form.
    Attention,
    /// Cache rows are stored by the kernel that computes them.
    Cache,
    /// A rotation joins the product that makes its pairs, whose weight rows are packed to make them neighbours.
    Rotation,
}

impl Rule {
    /// Every rule.
    pub const ALL: [Rule; 8] = [
        Rule::Elementwise,
        Rule::Row,
        Rule::Gather,
        Rule::Epilogue,
        Rule::Siblings,
        Rule::Attention,
        Rule::Cache,
        Rule::Rotation,
    ];

    /// The name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Rule::Elementwise => "elementwise",
            Rule::Row => "row",
            Rule::Gather => "gather",
            Rule::Epilogue => "epilogue",
            Rule::Siblings => "siblings",
            Rule::Attention => "attention",
            Rule::Cache => "cache",
            Rule::Rotation => "rotation",
        }
    }

    /// The rule of a name.
    ///
    /// # Errors
    /// A sentence that names the unknown rule and the known ones.
    pub fn parse(name: &str) -> Result<Rule, String> {
        Rule::ALL.into_iter().find(|rule| rule.name() == name.trim()).ok_or_else(|| {
            let known: Vec<&str> = Rule::ALL.iter().map(|rule| rule.name()).collect();
            format!("unknown fusion rule `{}`; the rules are {}", name.trim(), known.join(", "))
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The rules that are on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules(BTreeSet<Rule>);

impl Rules {
    /// Every rule.
    pub fn all() -> Rules {
        Rules(Rule::ALL.into())
    }

    /// No rule: each op is a kernel.
    pub fn none() -> Rules {
        Rules(BTreeSet::new())
    }

    /// These rules and no other.
    pub fn only(rules: impl IntoIterator<Item = Rule>) -> Rules {
        Rules(rules.into_iter().collect())
    }

    /// All of these rules but the given ones.
    pub fn without(&self, rules: impl IntoIterator<Item = Rule>) -> Rules {
        let mut left = self.0.clone();
        rules.into_iter().for_each(|rule| {
            left.remove(&rule);
        });
        Rules(left)
    }

    /// Whether a rule is on.
    pub fn allows(&self, rule: Rule) -> bool {
        self.0.contains(&rule)
    }

    /// Reads `all`, `none` or a list such as `epilogue,attention`.
    ///
    /// # Errors
    /// A sentence that names the unknown rule and the known ones.
    pub fn parse(list: &str) -> Result<Rules, String> {
        match list.trim() {
            "all" | "on" => Ok(Rules::all()),
            "none" | "off" => Ok(Rules::none()),
            names => names.split(',').map(Rule::parse).collect::<Result<_, _>>().map(Rules),
        }
    }
}
