//! A summarizer that needs no model: it picks the sentences that say most of what the text is about.
//!
//! Sentences are scored by the weight of their words (frequent in the text, in few of its sentences), with a
//! bonus for standing early; they are picked one by one, each time the best one that does not repeat what
//! was picked. The same text gives the same summary.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;

use crate::{Completion, CompletionRequest, Provider, ProviderError};

/// Sentences that are compared with each other; longer texts are thinned out by score first.
const CANDIDATES_MAX: usize = 400;
/// Characters of a sentence that are read; a longer one is no prose.
const SENTENCE_CHARS_MAX: usize = 1_000;
/// How much a repetition costs, against a score of at most 1.
const REPETITION: f64 = 0.7;

const STOP_WORDS: &[&str] = &[
    "a", "about", "after", "all", "also", "an", "and", "any", "are", "as", "at", "be", "because", "been",
    "but", "by", "can", "could", "did", "do", "does", "each", "for", "from", "had", "has", "have", "he",
    "her", "his", "how", "i", "if", "in", "into", "is", "it", "its", "may", "more", "most", "must", "no",
    "not", "of", "on", "one", "only", "or", "other", "our", "out", "over", "she", "should", "so", "some",
    "such", "than", "that", "the", "their", "them", "then", "there", "these", "they", "this", "those", "to",
    "under", "up", "us", "was", "we", "were", "what", "when", "where", "which", "while", "who", "will",
    "with", "would", "you", "your",
];

/// The offline summarizer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extractive;

#[async_trait]
impl Provider for Extractive {
    fn name(&self) -> &str {
        "extractive"
    }

    fn model(&self) -> &str {
        "offline"
    }

    async fn complete(&self, request: &CompletionRequest) -> Result<Completion, ProviderError> {
        let text = summarize(&request.text, request.sentences.clamp(1, 100))?;
        Ok(Completion {
            text,
            model: "offline".to_owned(),
            finish_reason: "stop".to_owned(),
            ..Completion::default()
        })
    }
}

struct Sentence {
    position: usize,
    text: String,
    words: HashSet<String>,
    score: f64,
}

/// The `count` sentences of `text` that say most, in their own order.
pub(crate) fn summarize(text: &str, count: usize) -> Result<String, ProviderError> {
    if text.trim().is_empty() {
        return Err(ProviderError::NothingToSummarize("the text is empty"));
    }
    let strange = text.chars().filter(|c| (c.is_control() && !c.is_whitespace()) || *c == '\u{fffd}').count();
    if strange * 20 > text.chars().count() {
        return Err(ProviderError::NothingToSummarize("the input looks like binary data, not text"));
    }
    let mut sentences = score(split(text));
    // What is said again and again is said once: it would crowd out everything else.
    let mut said = HashSet::new();
    sentences.retain(|s| said.insert(s.text.clone()));
    if sentences.is_empty() {
        return Err(ProviderError::NothingToSummarize("the text has no sentences"));
    }
    sentences.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.position.cmp(&b.position)));
    sentences.truncate(CANDIDATES_MAX);
    let mut picked: Vec<Sentence> = Vec::new();
    while picked.len() < count && !sentences.is_empty() {
        let worth = |s: &Sentence| {
            let repeats = picked.iter().map(|p| overlap(&p.words, &s.words)).fold(0.0, f64::max);
            s.score - REPETITION * repeats
        };
        let best = (0..sentences.len())
            .max_by(|&a, &b| worth(&sentences[a]).total_cmp(&worth(&sentences[b])).then(b.cmp(&a)));
        let Some(best) = best else { break };
        picked.push(sentences.swap_remove(best));
    }
    picked.sort_by_key(|s| s.position);
    Ok(picked.into_iter().map(|s| s.text).collect::<Vec<_>>().join(" "))
}

fn overlap(a: &HashSet<String>, b: &HashSet<String>) -> f64 {
    let shared = a.intersection(b).count();
    shared as f64 / a.len().min(b.len()).max(1) as f64
}

fn score(texts: Vec<String>) -> Vec<Sentence> {
    let words: Vec<Vec<String>> = texts.iter().map(|t| words(t)).collect();
    let mut frequency: HashMap<&str, f64> = HashMap::new();
    let mut sentences_with: HashMap<&str, f64> = HashMap::new();
    for sentence in &words {
        for word in sentence {
            *frequency.entry(word).or_default() += 1.0;
        }
        for word in sentence.iter().collect::<HashSet<_>>() {
            *sentences_with.entry(word).or_default() += 1.0;
        }
    }
    let total = texts.len().max(1) as f64;
    let weight = |word: &str| {
        let (f, s) =
            (frequency.get(word).copied().unwrap_or(0.0), sentences_with.get(word).copied().unwrap_or(1.0));
        f.sqrt() * (1.0 + total / s).ln()
    };
    let raw: Vec<f64> = words
        .iter()
        .map(|sentence| {
            let sum: f64 = sentence.iter().map(|w| weight(w)).sum();
            // Long sentences would win by their length alone, very short ones by a single rare word.
            sum / (sentence.len() as f64).max(8.0).powf(0.8)
        })
        .collect();
    let most = raw.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let scored: Vec<(f64, HashSet<String>)> = raw
        .iter()
        .zip(&words)
        .enumerate()
        .map(|(i, (raw, words))| {
            let early = 0.2 * (1.0 - i as f64 / total);
            (0.8 * raw / most + early, words.iter().cloned().collect())
        })
        .collect();
    // A sentence of a word or two says little, unless the text has no others.
    let longest = scored.iter().map(|(_, words)| words.len()).max().unwrap_or(0);
    texts
        .into_iter()
        .zip(scored)
        .enumerate()
        .filter(|(_, (_, (_, words)))| words.len() >= longest.min(3))
        .map(|(position, (text, (score, words)))| Sentence { position, text, words, score })
        .collect()
}

fn words(sentence: &str) -> Vec<String> {
    sentence
        .split(|c: char| !c.is_alphanumeric())
        .map(str::to_lowercase)
        .filter(|w| w.chars().count() > 1 && !STOP_WORDS.contains(&w.as_str()))
        .collect()
}

/// Paragraphs first: headings, list marks, tables and fenced code are not prose. Then sentences.
fn split(text: &str) -> Vec<String> {
    let mut sentences = Vec::new();
    let mut paragraph = String::new();
    let mut fenced = false;
    let markdown = text.lines().any(|line| line.starts_with("# ") || line.starts_with("## "));
    for line in text.lines().chain(std::iter::once("")) {
        let indented =
            markdown && paragraph.is_empty() && (line.starts_with('\t') || line.starts_with("    "));
        let line = line.trim();
        if line.starts_with("```") || line.starts_with("~~~") {
            fenced = !fenced;
        }
        let bullet = line.trim_start_matches(['-', '*', '+', '>', ' ']).trim_start();
        let prose = !fenced
            && !indented
            && !bullet.is_empty()
            && !line.starts_with(['#', '|', '`', '='])
            && mostly_words(bullet);
        if !prose || bullet.len() != line.len() {
            sentences_of(&paragraph, &mut sentences);
            paragraph.clear();
        }
        if prose {
            if !paragraph.is_empty() {
                paragraph.push(' ');
            }
            paragraph.push_str(bullet);
        }
    }
    sentences_of(&paragraph, &mut sentences);
    sentences
}

/// Drawings, tables and code have more marks than letters.
fn mostly_words(line: &str) -> bool {
    let words = line.chars().filter(|c| c.is_alphabetic() || *c == ' ').count();
    words * 10 >= line.chars().count() * 7 && line.chars().any(char::is_alphabetic)
}

fn sentences_of(paragraph: &str, out: &mut Vec<String>) {
    let mut current = String::new();
    let mut chars = paragraph.chars().peekable();
    while let Some(c) = chars.next() {
        current.push(c);
        let full = matches!(c, '。' | '！' | '？');
        let stop = matches!(c, '.' | '!' | '?') && chars.peek().is_none_or(|n| n.is_whitespace());
        if full || (stop && !abbreviated(&current)) || current.len() > 4 * SENTENCE_CHARS_MAX {
            push(&mut current, out);
        }
    }
    push(&mut current, out);
}

fn push(current: &mut String, out: &mut Vec<String>) {
    let sentence = current.split_whitespace().collect::<Vec<_>>().join(" ");
    current.clear();
    if !sentence.is_empty() && sentence.chars().count() <= SENTENCE_CHARS_MAX {
        out.push(sentence);
    }
}

/// "e.g.", "Dr." and single letters do not end a sentence.
fn abbreviated(sentence: &str) -> bool {
    let last = sentence.rsplit(char::is_whitespace).next().unwrap_or_default().trim_end_matches('.');
    last.contains('.')
        || last.chars().count() == 1
        || ["Dr", "Mr", "Mrs", "Ms", "Prof", "St", "No", "vs", "etc", "cf", "Fig", "Sec"].contains(&last)
}

#[cfg(test)]
mod tests;
