//! As much of the flatbuffers format as zTOCs have, read with every offset checked.
//!
//! A table begins with the signed distance back to its vtable: lengths of vtable and table, and for each field its place in
//! the table or 0. Strings and vectors are at an unsigned distance from the field, and begin with their length.

use super::super::error::Error;
use std::ops::Range;

/// A table in a flatbuffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table<'a> {
    flat: &'a [u8],
    at: usize,
    vtable: usize,
    vtable_bytes: usize,
}

/// A vector of offsets.
#[derive(Debug)]
pub(super) struct Vector<'a> {
    flat: &'a [u8],
    range: Range<usize>,
}

fn damaged(at: usize) -> Error {
    Error::damaged("zTOC", at as u64, "an offset leads out of it")
}

fn array<const N: usize>(flat: &[u8], at: usize) -> Result<[u8; N], Error> {
    let field = flat.get(at..).and_then(|rest| rest.first_chunk());
    field.copied().ok_or_else(|| damaged(at))
}

/// Where the offset at `at` leads.
fn follow(flat: &[u8], at: usize) -> Result<usize, Error> {
    let distance = usize::try_from(u32::from_le_bytes(array(flat, at)?)).map_err(|_| damaged(at))?;
    at.checked_add(distance).filter(|target| *target < flat.len()).ok_or_else(|| damaged(at))
}

/// The `unit` bytes long elements after the length at `at`.
fn elements(flat: &[u8], at: usize, unit: usize) -> Result<Range<usize>, Error> {
    let count = usize::try_from(u32::from_le_bytes(array(flat, at)?)).map_err(|_| damaged(at))?;
    let start = at + 4;
    let end = count.checked_mul(unit).and_then(|bytes| bytes.checked_add(start));
    end.filter(|end| *end <= flat.len()).map(|end| start..end).ok_or_else(|| damaged(at))
}

impl<'a> Table<'a> {
    pub(super) fn root(flat: &'a [u8]) -> Result<Self, Error> {
        Self::at(flat, follow(flat, 0)?)
    }

    fn at(flat: &'a [u8], at: usize) -> Result<Self, Error> {
        let back = i64::from(i32::from_le_bytes(array(flat, at)?));
        let vtable =
            i64::try_from(at).ok().and_then(|at| usize::try_from(at - back).ok()).ok_or_else(|| damaged(at))?;
        let vtable_bytes = usize::from(u16::from_le_bytes(array(flat, vtable)?));
        Ok(Self { flat, at, vtable, vtable_bytes })
    }

    /// Where the field `slot` is; `None` if it has its default.
    fn field(&self, slot: usize) -> Result<Option<usize>, Error> {
        let entry = 4 + 2 * slot;
        if entry + 2 > self.vtable_bytes {
            return Ok(None);
        }
        let place = usize::from(u16::from_le_bytes(array(self.flat, self.vtable + entry)?));
        Ok((place > 0).then_some(self.at + place))
    }

    fn scalar<const N: usize>(&self, slot: usize) -> Result<Option<[u8; N]>, Error> {
        self.field(slot)?.map(|at| array(self.flat, at)).transpose()
    }

    pub(super) fn byte(&self, slot: usize, default: u8) -> Result<u8, Error> {
        Ok(self.scalar(slot)?.map_or(default, |[byte]| byte))
    }

    pub(super) fn word(&self, slot: usize) -> Result<u32, Error> {
        Ok(self.scalar(slot)?.map_or(0, u32::from_le_bytes))
    }

    pub(super) fn long(&self, slot: usize) -> Result<i64, Error> {
        Ok(self.scalar(slot)?.map_or(0, i64::from_le_bytes))
    }

    /// The bytes of a string or of a vector of bytes: where they lie.
    pub(super) fn range(&self, slot: usize) -> Result<Option<Range<usize>>, Error> {
        let Some(at) = self.field(slot)? else { return Ok(None) };
        elements(self.flat, follow(self.flat, at)?, 1).map(Some)
    }

    pub(super) fn bytes(&self, slot: usize) -> Result<Option<&'a [u8]>, Error> {
        Ok(self.range(slot)?.map(|range| &self.flat[range]))
    }

    pub(super) fn table(&self, slot: usize) -> Result<Option<Self>, Error> {
        let Some(at) = self.field(slot)? else { return Ok(None) };
        Self::at(self.flat, follow(self.flat, at)?).map(Some)
    }

    pub(super) fn vector(&self, slot: usize) -> Result<Option<Vector<'a>>, Error> {
        let Some(at) = self.field(slot)? else { return Ok(None) };
        let range = elements(self.flat, follow(self.flat, at)?, 4)?;
        Ok(Some(Vector { flat: self.flat, range }))
    }
}

impl<'a> Vector<'a> {
    pub(super) fn len(&self) -> usize {
        self.range.len() / 4
    }

    /// Where the element `number`, of which there is one, leads.
    fn target(&self, number: usize) -> Result<usize, Error> {
        follow(self.flat, self.range.start + 4 * number)
    }

    pub(super) fn table(&self, number: usize) -> Result<Table<'a>, Error> {
        Table::at(self.flat, self.target(number)?)
    }

    pub(super) fn bytes(&self, number: usize) -> Result<&'a [u8], Error> {
        Ok(&self.flat[elements(self.flat, self.target(number)?, 1)?])
    }
}
