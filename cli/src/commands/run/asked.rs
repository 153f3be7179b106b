//! What is to be continued: prompts as token ids, however they were given.

use crate::args::Run;
use crate::failure::{Exit, Failure};
use crate::input;
use crate::memory::Needs;
use crate::text::{Prompter, TextTokenizer, prompt};
use lapidary_models::ModelSpec;
use std::path::{Path, PathBuf};

/// The prompts of a run.
pub struct Asked {
    /// Ids of each, in the order of texts, token lists, files.
    pub prompts: Vec<Vec<u32>>,
    /// The tokenizer; none where ids were given and there is none beside the weights.
    pub tokenizer: Option<TextTokenizer>,
    /// Whether the user speaks in ids and is answered in ids.
    pub in_ids: bool,
    next_turn: Option<u32>,
}

impl Asked {
    /// Reads every prompt.
    ///
    /// # Errors
    /// Exit 3 for prompts that the model cannot begin with.
    pub fn read(args: &Run, spec: &ModelSpec, weights: &Path) -> Result<Asked, Failure> {
        let texts = texts(args)?;
        let lists = args.tokens.iter().map(|list| ids(list)).collect::<Result<Vec<_>, _>>()?;
        let in_ids = texts.is_empty() && args.fim_prefix.is_none();
        let mut asked = Asked { prompts: Vec::new(), tokenizer: None, in_ids, next_turn: None };
        asked.tokenizer = match tokenizer_file(args, weights) {
            Some(file) => Some(TextTokenizer::open(&file, spec)?),
            None if in_ids => None,
            None => return Err(no_tokenizer(weights)),
        };
        if let Some(tokenizer) = asked.tokenizer.as_ref().filter(|_| !in_ids) {
            let prompter = Prompter { spec, tokenizer };
            asked.next_turn = if args.chat { Some(prompter.next_turn()?) } else { None };
            asked.prompts = prompts(&prompter, args, &texts)?;
        }
        asked.prompts.extend(lists);
        asked.prompts.iter().enumerate().try_for_each(|(i, prompt)| check(i, prompt, spec))?;
        Ok(asked)
    }

    /// The tokens that end a sequence.
    pub fn stop(&self, args: &Run, spec: &ModelSpec) -> Vec<u32> {
        let eos = prompt::id(spec.tokens.eos).filter(|_| !args.ignore_eos);
        eos.into_iter().chain(self.next_turn).chain(args.stop.iter().copied()).collect()
    }

    /// What running needs: room for the longest prompt and its continuation, as far as the model goes.
    pub fn needs(&self, spec: &ModelSpec, max_new: usize) -> Needs {
        let longest = self.prompts.iter().map(Vec::len).max().unwrap_or(1) as u64;
        Needs {
            sequences: self.prompts.len() as u64,
            positions: longest.saturating_add(max_new as u64).min(spec.max_seq),
            tokens: self.prompts.iter().map(|prompt| prompt.len() as u64).sum(),
        }
    }
}

fn texts(args: &Run) -> Result<Vec<String>, Failure> {
    let files = args.prompt_file.iter().map(|file| input::text(file));
    args.prompt.iter().cloned().map(Ok).chain(files).collect()
}

fn prompts(prompter: &Prompter<'_>, args: &Run, texts: &[String]) -> Result<Vec<Vec<u32>>, Failure> {
    let mut prompts = Vec::new();
    if let Some(prefix) = &args.fim_prefix {
        prompts.push(prompter.fill(prefix, args.fim_suffix.as_deref().unwrap_or(""))?);
    }
    for text in texts {
        prompts.push(match args.chat {
            true => prompter.chat(args.system.as_deref(), text)?,
            false => prompter.text(text)?,
        });
    }
    Ok(prompts)
}

/// `1,2,3` as ids.
fn ids(list: &str) -> Result<Vec<u32>, Failure> {
    let id = |word: &str| {
        word.trim().parse::<u32>().map_err(|_| {
            Failure::new(Exit::Usage, format!("--tokens {list}: `{}` is no token id", word.trim()))
        })
    };
    list.split(',').map(id).collect()
}

/// The tokenizer that was named, or the one beside the weights or the model.
fn tokenizer_file(args: &Run, weights: &Path) -> Option<PathBuf> {
    let model = Path::new(&args.model);
    let beside = if model.is_dir() { Some(model) } else { model.parent() };
    let found = [Some(weights), beside].into_iter().flatten().map(|folder| folder.join("tokenizer.json"));
    args.tokenizer.clone().or_else(|| found.into_iter().find(|file| file.is_file()))
}

fn no_tokenizer(weights: &Path) -> Failure {
    Failure::new(Exit::InvalidInput, format!("{}: holds no tokenizer.json", weights.display()))
        .help("name one with --tokenizer FILE, or give token ids with --tokens 1,2,3")
}

fn check(index: usize, prompt: &[u32], spec: &ModelSpec) -> Result<(), Failure> {
    let refused =
        |what: String| Err(Failure::new(Exit::InvalidInput, format!("prompt {}: {what}", index + 1)));
    if prompt.is_empty() {
        return refused(format!("is empty, and {} has no token to begin a text with", spec.name));
    }
    if let Some(id) = prompt.iter().find(|id| u64::from(**id) >= spec.vocab) {
        return refused(format!("token {id} is not below the vocabulary of {}: {}", spec.name, spec.vocab));
    }
    match prompt.len() as u64 <= spec.max_seq {
        true => Ok(()),
        false => refused(format!(
            "has {} tokens, {} was built for {} positions",
            prompt.len(),
            spec.name,
            spec.max_seq
        )),
    }
}
