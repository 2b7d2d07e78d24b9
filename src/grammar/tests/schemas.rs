//! Schemas that are honoured.

use serde_json::json;

use super::*;

#[test]
fn objects_follow_their_schema() {
    let grammar = schema(json!({
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
        "required": ["name", "age"],
        "additionalProperties": false,
    }));
    expect(
        &grammar,
        &[r#"{"name": "Ada", "age": 36}"#, r#"{"name":"","age":0}"#],
        &[
            r#"{"name":"Ada"}"#,
            r#"{"age":1,"name":""}"#,
            r#"{"name":"","age":-1}"#,
            "{}",
        ],
    );
}
