//! Reads tests/vectors of the project, whose README describes the format.
#![allow(dead_code)] // each test uses its part

use std::collections::HashMap;
use std::path::PathBuf;

use half::{bf16, f16};
use rmsnorm::{Element, Input, Output, Result, Shape, View, ViewMut};

pub fn folder(name: &str) -> PathBuf {
    match std::env::var_os("RMSNORM_TEST_DATA") {
        Some(data) => PathBuf::from(data).join("..").join(name),
        None => PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../tests")).join(name),
    }
}

/// A call: its fields as text.
pub struct Vector {
    fields: HashMap<String, String>,
}

pub fn vectors() -> (Vec<Vector>, Vec<u8>) {
    let folder = folder("vectors");
    let read = |name| std::fs::read(folder.join(name)).expect("tests/vectors");
    let cases = String::from_utf8(read("cases.json")).expect("UTF-8");
    let lines = cases.lines().filter(|line| line.starts_with('{'));
    let vectors: Vec<Vector> = lines.map(|line| Vector { fields: fields(line) }).collect();
    assert!(vectors.len() > 100);
    (vectors, read("data.bin"))
}

fn fields(line: &str) -> HashMap<String, String> {
    let inside = line.trim_start_matches('{').trim_end_matches(',').trim_end_matches('}');
    let parts = inside.split(", \"").map(|part| part.split_once("\": ").expect("key: value"));
    parts
        .map(|(key, value)| (key.trim_matches('"').into(), value.trim_matches('"').into()))
        .collect()
}

impl Vector {
    pub fn text(&self, key: &str) -> &str {
        &self.fields[key]
    }
    pub fn has(&self, key: &str) -> bool {
        self.fields.contains_key(key)
    }
    pub fn number<T: std::str::FromStr>(&self, key: &str) -> T {
        self.text(key).parse().unwrap_or_else(|_| panic!("{}: {key}", self.text("name")))
    }
    pub fn of<T: std::str::FromStr>(&self, tensor: &str, field: &str) -> T {
        self.number(&format!("{tensor}.{field}"))
    }
    /// The tensors that are present.
    pub fn tensors(&self) -> Vec<String> {
        let names = self.fields.keys().filter_map(|key| key.strip_suffix(".dtype"));
        names.map(str::to_string).collect()
    }
    /// The tensor whose memory this one stands in.
    pub fn memory_of<'a>(&'a self, tensor: &'a str) -> &'a str {
        self.fields.get(&format!("{tensor}.memory")).map_or(tensor, String::as_str)
    }
    /// What each memory holds "before" or "after" the call.
    pub fn memories(&self, data: &[u8], when: &str) -> HashMap<String, Memory> {
        let own = self.tensors().into_iter().filter(|name| self.memory_of(name) == name);
        own.map(|name| {
            let dtype = self.text(&format!("{name}.dtype"));
            let mut memory = Memory::new(dtype, self.of(&name, "elements"));
            let size = memory.bytes().len();
            let keys: &[&str] = if when == "after" { &["after", "before"] } else { &["before"] };
            let key = keys.iter().map(|key| format!("{name}.{key}")).find(|key| self.has(key));
            match key {
                Some(key) => {
                    let begin: usize = self.number(&key);
                    memory.bytes_mut().copy_from_slice(&data[begin..begin + size]);
                }
                None => memory.bytes_mut().fill(0xa5),
            }
            (name, memory)
        })
        .collect()
    }
}

/// Elements of one type.
#[derive(Debug, Clone)]
pub enum Memory {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    F64(Vec<f64>),
}

macro_rules! each {
    ($memory:expr, $elements:ident => $body:expr) => {
        match $memory {
            Memory::F32($elements) => $body,
            Memory::F16($elements) => $body,
            Memory::Bf16($elements) => $body,
            Memory::F64($elements) => $body,
        }
    };
}

fn bytes<T: Element>(elements: &[T]) -> &[u8] {
    // SAFETY: every byte of an Element is initialised.
    unsafe { std::slice::from_raw_parts(elements.as_ptr().cast(), size_of_val(elements)) }
}

fn bytes_mut<T: Element>(elements: &mut [T]) -> &mut [u8] {
    let size = size_of_val(elements);
    // SAFETY: every pattern of bits is an Element.
    unsafe { std::slice::from_raw_parts_mut(elements.as_mut_ptr().cast(), size) }
}

impl Memory {
    fn new(dtype: &str, elements: usize) -> Self {
        match dtype {
            "f32" => Memory::F32(vec![0.0; elements]),
            "f16" => Memory::F16(vec![f16::ZERO; elements]),
            "bf16" => Memory::Bf16(vec![bf16::ZERO; elements]),
            "f64" => Memory::F64(vec![0.0; elements]),
            other => panic!("dtype {other}"),
        }
    }
    pub fn bytes(&self) -> &[u8] {
        each!(self, elements => bytes(elements))
    }
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        each!(self, elements => bytes_mut(elements))
    }
    pub fn element_size(&self) -> usize {
        each!(self, elements => size_of_val(&elements[..]) / elements.len().max(1))
    }
    pub fn len(&self) -> usize {
        each!(self, elements => elements.len())
    }
    fn is_nan(&self, index: usize) -> bool {
        match self {
            Memory::F32(e) => e[index].is_nan(),
            Memory::F16(e) => e[index].is_nan(),
            Memory::Bf16(e) => e[index].is_nan(),
            Memory::F64(e) => e[index].is_nan(),
        }
    }
    pub fn view(&self, offset: usize, shape: Shape, strides: [isize; 2]) -> Result<Input<'_>> {
        Ok(each!(self, elements => View::strided(elements, offset, shape, strides)?.into()))
    }
    pub fn view_mut(
        &mut self,
        offset: usize,
        shape: Shape,
        strides: [isize; 2],
    ) -> Result<Output<'_>> {
        Ok(each!(self, elements => ViewMut::strided(elements, offset, shape, strides)?.into()))
    }
    /// Two outputs side by side in the columns of one view.
    pub fn split_mut(
        &mut self,
        shape: Shape,
        strides: [isize; 2],
        col: usize,
    ) -> Result<(Output<'_>, Output<'_>)> {
        each!(self, elements => {
            let (left, right) = ViewMut::strided(elements, 0, shape, strides)?.split_cols(col)?;
            Ok((left.into(), right.into()))
        })
    }
}

/// The first element that has other bits, if NaN are all the same.
pub fn difference(found: &Memory, expected: &Memory) -> Option<usize> {
    assert_eq!(found.len(), expected.len());
    let size = found.element_size().max(1);
    let pairs = found.bytes().chunks(size).zip(expected.bytes().chunks(size));
    pairs.enumerate().position(|(i, (a, b))| a != b && !(found.is_nan(i) && expected.is_nan(i)))
}

pub fn expect_memories(
    name: &str,
    found: &HashMap<String, Memory>,
    expected: &HashMap<String, Memory>,
) {
    for (tensor, memory) in found {
        let place = difference(memory, &expected[tensor]);
        assert_eq!(place, None, "{name}: the first other element of {tensor}'s memory");
    }
}
