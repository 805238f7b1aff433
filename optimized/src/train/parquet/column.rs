//! One column: its place in the schema, and its values as JSON.
//!
//! A column is stored as leaves. Beside its values a leaf has for each entry a definition level,
//! how much of the path to it is there, and where the path has a list a repetition level, which is
//! 0 where a row begins.

use parquet::basic::{ConvertedType, Repetition, Type as PhysicalType};
use parquet::column::reader::{ColumnReader as AnyReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::reader::RowGroupReader;
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor, Type};
use serde_json::{Map, Value};

use super::{ColumnKind, Wanted};

/// Where a column stands.
pub struct Column {
    name: &'static str,
    leaves: Vec<Leaf>,
    is_list: bool,
}

#[derive(Debug, Clone)]
struct Leaf {
    /// Of the struct; empty where the column is the leaf.
    field: &'static str,
    /// Among the leaves of the file.
    index: usize,
    levels: Levels,
}

/// From which definition level on something is there.
#[derive(Debug, Clone, Copy)]
struct Levels {
    /// The list, which may be empty.
    list: i16,
    /// The struct of an entry.
    structure: i16,
    /// The string.
    value: i16,
}

impl Column {
    /// The column in a schema; `None` where there is none of this name.
    ///
    /// # Errors
    /// What it holds in the place of what is wanted.
    pub fn find(schema: &SchemaDescriptor, wanted: &Wanted) -> Result<Option<Self>, String> {
        let Wanted { name, kind, .. } = *wanted;
        if !schema.root_schema().get_fields().iter().any(|field| field.name() == name) {
            return Ok(None);
        }
        let leaves = match kind {
            ColumnKind::Strings => vec![leaf(schema, name, "")?],
            ColumnKind::Structs(fields) => {
                let leaf = |field: &&'static str| leaf(schema, name, field);
                fields.iter().map(leaf).collect::<Result<_, _>>()?
            }
        };
        Ok(Some(Self { name, leaves, is_list: matches!(kind, ColumnKind::Structs(_)) }))
    }

    /// Its values in a row group.
    ///
    /// # Errors
    /// What the library says.
    pub fn open(&self, group: &dyn RowGroupReader) -> Result<ColumnReader, String> {
        let mut leaves = Vec::with_capacity(self.leaves.len());
        for leaf in &self.leaves {
            let reader = group.get_column_reader(leaf.index);
            match reader.map_err(|error| format!("column {}: {error}", self.name))? {
                AnyReader::ByteArrayColumnReader(reader) => leaves.push((leaf.clone(), reader)),
                _ => return Err(format!("column {}: holds no strings", self.name)),
            }
        }
        Ok(ColumnReader { name: self.name, is_list: self.is_list, leaves })
    }
}

fn leaf(
    schema: &SchemaDescriptor,
    name: &'static str,
    field: &'static str,
) -> Result<Leaf, String> {
    let is_it = |column: &ColumnDescriptor| {
        let path = column.path().parts();
        let is_nested = path.len() > 2 || (path.len() == 2 && column.max_rep_level() == 1);
        path[0] == name
            && match field {
                "" => path.len() == 1 && column.max_rep_level() == 0,
                _ => is_nested && path.last().is_some_and(|last| last == field),
            }
    };
    let index = schema.columns().iter().position(|column| is_it(column));
    let Some(index) = index else {
        return Err(match field {
            "" => format!("column {name}: expected one string on each row"),
            _ => format!("column {name}: expected lists of structs with a field {field}"),
        });
    };
    let column = schema.column(index);
    let path = column.path().string();
    let is_text = matches!(
        column.converted_type(),
        ConvertedType::UTF8 | ConvertedType::NONE | ConvertedType::ENUM | ConvertedType::JSON
    );
    if column.physical_type() != PhysicalType::BYTE_ARRAY || !is_text {
        let (physical, converted) = (column.physical_type(), column.converted_type());
        return Err(format!("column {path}: holds {physical} ({converted}), expected strings"));
    }
    let levels = levels(schema.root_schema(), column.path().parts(), field.is_empty());
    let levels = levels.ok_or_else(|| format!("column {path}: expected one list on each row"))?;
    Ok(Leaf { field, index, levels })
}

/// Levels along a path of one list of structs, or of none where it is flat; `None` for any other.
fn levels(root: &Type, path: &[String], is_flat: bool) -> Option<Levels> {
    let (mut at, mut defined, mut structure, mut list) = (root, 0, 0, None);
    for part in path {
        at = at.get_fields().iter().find(|field| field.name() == part)?;
        structure = defined;
        match at.get_basic_info().repetition() {
            Repetition::REQUIRED => {}
            Repetition::OPTIONAL => defined += 1,
            Repetition::REPEATED if list.is_some() || is_flat => return None,
            Repetition::REPEATED => {
                list = Some(defined);
                defined += 1;
            }
        }
    }
    if is_flat {
        return Some(Levels { list: 0, structure: 0, value: defined });
    }
    // The struct is what is repeated, or within it: not the string itself.
    let list = list.filter(|list| structure > *list)?;
    Some(Levels { list, structure, value: defined })
}

/// A column of the open row group.
pub struct ColumnReader {
    name: &'static str,
    is_list: bool,
    leaves: Vec<(Leaf, ColumnReaderImpl<ByteArrayType>)>,
}

/// A list of a row: the field's value of each struct. What is null is `None`.
type List = Option<Vec<Option<Value>>>;

impl ColumnReader {
    /// Of the column.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Values of the next `rows` rows, of which the first is number `first` of the file.
    ///
    /// # Errors
    /// Column, row and what is wrong with it.
    pub fn read(&mut self, rows: usize, first: usize) -> Result<Vec<Value>, String> {
        let name = self.name;
        let at = |reason: String| format!("column {name}, from row {first} on: {reason}");
        let mut lists: Vec<Vec<List>> = Vec::with_capacity(self.leaves.len());
        for (leaf, reader) in &mut self.leaves {
            let entries = Entries::read(reader, leaf.levels.value, rows).map_err(at)?;
            let in_row = |row: usize, reason: &str| {
                let field = leaf.field;
                let dot = if field.is_empty() { "" } else { "." };
                format!("row {}: column {name}{dot}{field} {reason}", first + row)
            };
            if !self.is_list {
                return entries.strings(leaf.levels, in_row);
            }
            let of_field = entries.lists(leaf.levels, in_row)?;
            if of_field.len() != rows {
                return Err(at(format!("{} lists on {rows} rows", of_field.len())));
            }
            lists.push(of_field);
        }
        (0..rows).map(|row| self.list(&mut lists, row, first)).collect()
    }

    /// The structs of a row out of those of their fields.
    fn list(&self, lists: &mut [Vec<List>], row: usize, first: usize) -> Result<Value, String> {
        let apart = || {
            format!("row {}: the fields of column {} have other lengths", first + row, self.name)
        };
        let mut fields: Vec<List> = lists.iter_mut().map(|list| list[row].take()).collect();
        if fields.iter().all(Option::is_none) {
            return Ok(Value::Null);
        }
        let mut structs: Vec<Option<Map<String, Value>>> = Vec::new();
        for (index, ((leaf, _), values)) in self.leaves.iter().zip(&mut fields).enumerate() {
            let values = values.take().ok_or_else(apart)?;
            if index == 0 {
                structs = values.iter().map(|value| value.as_ref().map(|_| Map::new())).collect();
            }
            if values.len() != structs.len() {
                return Err(apart());
            }
            for (structure, value) in structs.iter_mut().zip(values) {
                match (structure, value) {
                    (Some(structure), Some(value)) => {
                        structure.insert(leaf.field.to_owned(), value);
                    }
                    (None, None) => {}
                    _ => return Err(apart()),
                }
            }
        }
        let value = |structure: Option<_>| structure.map_or(Value::Null, Value::Object);
        Ok(Value::Array(structs.into_iter().map(value).collect()))
    }
}

/// What some rows of a leaf hold.
struct Entries {
    rows: usize,
    /// Empty where every entry has its value.
    definitions: Vec<i16>,
    /// Empty without a list.
    repetitions: Vec<i16>,
    values: std::vec::IntoIter<ByteArray>,
}

impl Entries {
    fn read(
        reader: &mut ColumnReaderImpl<ByteArrayType>,
        value: i16,
        rows: usize,
    ) -> Result<Self, String> {
        let (mut definitions, mut repetitions, mut values) = (Vec::new(), Vec::new(), Vec::new());
        let mut found = 0;
        while found < rows {
            let levels = (Some(&mut definitions), Some(&mut repetitions));
            let read = reader.read_records(rows - found, levels.0, levels.1, &mut values);
            match read.map_err(|error| error.to_string())? {
                (0, _, _) => return Err(format!("it ends after {found} of {rows} rows")),
                (records, _, _) => found += records,
            }
        }
        if value == 0 {
            definitions.clear();
        }
        Ok(Self { rows, definitions, repetitions, values: values.into_iter() })
    }

    /// A string or null on each row.
    fn strings(
        mut self,
        levels: Levels,
        in_row: impl Fn(usize, &str) -> String,
    ) -> Result<Vec<Value>, String> {
        let definition = |row: usize| match self.definitions.get(row) {
            Some(definition) => *definition,
            None => levels.value,
        };
        let is_there: Vec<bool> =
            (0..self.rows).map(|row| definition(row) == levels.value).collect();
        let text = |(row, is_there)| match is_there {
            true => string(self.values.next()).map_err(|reason| in_row(row, reason)),
            false => Ok(Value::Null),
        };
        is_there.into_iter().enumerate().map(text).collect()
    }

    fn lists(
        mut self,
        levels: Levels,
        in_row: impl Fn(usize, &str) -> String,
    ) -> Result<Vec<List>, String> {
        let mut lists: Vec<List> = Vec::with_capacity(self.rows);
        for (repetition, definition) in self.repetitions.iter().zip(&self.definitions) {
            if *repetition == 0 {
                lists.push((*definition >= levels.list).then(Vec::new));
            }
            let row = lists.len().saturating_sub(1);
            if *definition <= levels.list {
                continue;
            }
            let value = match *definition {
                definition if definition == levels.value => {
                    Some(string(self.values.next()).map_err(|reason| in_row(row, reason))?)
                }
                definition => (definition >= levels.structure).then_some(Value::Null),
            };
            match lists.last_mut() {
                Some(Some(list)) => list.push(value),
                _ => return Err(in_row(row, "has an entry outside of every list")),
            }
        }
        Ok(lists)
    }
}

fn string(bytes: Option<ByteArray>) -> Result<Value, &'static str> {
    let bytes = bytes.ok_or("has fewer values than it says")?;
    let text = std::str::from_utf8(bytes.data()).map_err(|_| "is not UTF-8 text")?;
    Ok(Value::String(text.to_owned()))
}
