/* config-yaml.c - YAML text in, a C struct or an error with file, line and what was expected out.
 *
 *   text ──guard──► libyaml document (every node has its line) ──check against the schema──► libcyaml fills the struct
 *
 * The schema is libcyaml's table, and the only one. libcyaml's own errors are lines of a log, the place apart from the reason and without what
 * was expected; so the document is held against the same table first, node by node, and libcyaml reads only what has passed. The document stays,
 * to give a line to what is found wrong later, by path.
 *
 * Y1 A text is refused before a tree of it is built if it has more than CONFIG_TEXT_MAX bytes, EVENTS_MAX parts or DEPTH_MAX levels, or any anchor,
 *    alias, tag or second document: what is read grows with the text and no faster. Y2 A key is known, and stands once in its mapping.
 * Y3 An enum value is one of its table; booleans are enums, as libcyaml takes every unknown word for true. Y4 A string is not empty, has no NUL.
 * Y5 An error is one line of UTF-8 without control characters, whatever the file has in it. Any thread. */
#include "base/config-yaml.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#define EVENTS_MAX 65536u
#define DEPTH_MAX 12u

struct config_yaml {
	const char *text, *file;
	size_t n;
	yaml_document_t document;
};

GQuark config_error_quark(void) { return g_quark_from_static_string("virtcft-config"); }

static void error_at(const struct config_yaml *y, GError **error, enum config_error code, size_t line, const char *format, ...)
	G_GNUC_PRINTF(5, 6);

static void error_at(const struct config_yaml *y, GError **error, enum config_error code, size_t line, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	g_autofree char *text = g_strdup_vprintf(format, args);
	va_end(args);
	g_autofree char *whole = g_strdup_printf("%s:%zu: %s", y->file, line, text), *shown = g_utf8_make_valid(whole, -1);
	for (char *p = shown; *p; p++)
		if (g_ascii_iscntrl(*p))
			*p = '?';
	g_set_error_literal(error, CONFIG_ERROR, (int)code, shown);
}

/* ---- guard ---- */

static void syntax_error(const struct config_yaml *y, const yaml_parser_t *parser, GError **error)
{
	size_t line = parser->problem_mark.line + 1;
	if (parser->error == YAML_READER_ERROR) {
		line = 1;
		for (size_t i = 0; i < parser->problem_offset && i < y->n; i++)
			line += y->text[i] == '\n';
	}
	error_at(y, error, CONFIG_ERROR_SYNTAX, line, "this is not YAML: %s%s%s; expected 'key: value' lines, indented by spaces",
	         parser->problem ? parser->problem : "no memory", parser->context ? " " : "", parser->context ? parser->context : "");
}

/* Y1 for one event; what is wrong with it, or NULL. */
static const char *event_fault(const yaml_event_t *event, unsigned *events, unsigned *depth, unsigned *documents)
{
	const yaml_char_t *anchor = NULL, *tag = NULL;
	switch (event->type) {
	case YAML_ALIAS_EVENT: anchor = event->data.alias.anchor; break;
	case YAML_SCALAR_EVENT: anchor = event->data.scalar.anchor; tag = event->data.scalar.tag; break;
	case YAML_SEQUENCE_START_EVENT: anchor = event->data.sequence_start.anchor; tag = event->data.sequence_start.tag; ++*depth; break;
	case YAML_MAPPING_START_EVENT: anchor = event->data.mapping_start.anchor; tag = event->data.mapping_start.tag; ++*depth; break;
	case YAML_SEQUENCE_END_EVENT: case YAML_MAPPING_END_EVENT: --*depth; break;
	case YAML_DOCUMENT_START_EVENT: ++*documents; break;
	default: break;
	}
	if (anchor)
		return "anchors (&) and aliases (*) are not read; expected every value written out";
	if (tag)
		return "tags (!) are not read; expected plain values";
	if (*documents > 1)
		return "a second document starts here; expected one";
	if (*depth > DEPTH_MAX)
		return "nested too deeply; expected at most 12 levels";
	if (++*events > EVENTS_MAX)
		return "too many values; expected at most 65536";
	return NULL;
}

static gboolean guard(const struct config_yaml *y, GError **error)
{
	yaml_parser_t parser;
	unsigned events = 0, depth = 0, documents = 0;
	const char *wrong = NULL;
	bool end = false;
	if (!yaml_parser_initialize(&parser))
		abort();
	yaml_parser_set_input_string(&parser, (const unsigned char *)y->text, y->n);
	while (!end && !wrong) {
		yaml_event_t event;
		if (!yaml_parser_parse(&parser, &event)) {
			syntax_error(y, &parser, error);
			break;
		}
		end = event.type == YAML_STREAM_END_EVENT;
		wrong = event_fault(&event, &events, &depth, &documents);
		if (wrong)
			error_at(y, error, CONFIG_ERROR_SYNTAX, event.start_mark.line + 1, "%s", wrong);
		yaml_event_delete(&event);
	}
	yaml_parser_delete(&parser);
	return end && !wrong;
}

static gboolean check_text(const struct config_yaml *y, GError **error)
{
	const char *end;
	if (y->n > CONFIG_TEXT_MAX) {
		error_at(y, error, CONFIG_ERROR_SYNTAX, 1, "%zu bytes; expected at most %u", y->n, CONFIG_TEXT_MAX);
		return FALSE;
	}
	if (!g_utf8_validate(y->text, (gssize)y->n, &end)) {
		size_t line = 1;
		for (const char *p = y->text; p < end; p++)
			line += *p == '\n';
		error_at(y, error, CONFIG_ERROR_SYNTAX, line, "this is not text: byte 0x%02x; expected UTF-8", (unsigned char)*end);
		return FALSE;
	}
	return TRUE;
}

struct config_yaml *config_yaml_open(const char *text, size_t n, const char *file, GError **error)
{
	struct config_yaml y = { .text = n ? text : "", .file = file, .n = n };
	yaml_parser_t parser;
	if (!check_text(&y, error) || !guard(&y, error))
		return NULL;
	if (!yaml_parser_initialize(&parser))
		abort();
	yaml_parser_set_input_string(&parser, (const unsigned char *)y.text, n);
	bool ok = yaml_parser_load(&parser, &y.document);
	if (!ok)
		syntax_error(&y, &parser, error);
	yaml_parser_delete(&parser);
	return ok ? g_memdup2(&y, sizeof y) : NULL;
}

void config_yaml_free(struct config_yaml *y)
{
	if (!y)
		return;
	yaml_document_delete(&y->document);
	g_free(y);
}

/* ---- nodes ---- */

static yaml_node_t *node(struct config_yaml *y, int index) { return yaml_document_get_node(&y->document, index); }
static size_t line_of(const yaml_node_t *n) { return n->start_mark.line + 1; }
static const char *scalar(const yaml_node_t *n) { return (const char *)n->data.scalar.value; }

static yaml_node_t *mapping_value(struct config_yaml *y, yaml_node_t *mapping, const char *key)
{
	for (yaml_node_pair_t *p = mapping->data.mapping.pairs.start; p < mapping->data.mapping.pairs.top; p++) {
		const yaml_node_t *k = node(y, p->key);
		if (k->type == YAML_SCALAR_NODE && !strcmp(scalar(k), key))
			return node(y, p->value);
	}
	return NULL;
}

static yaml_node_t *child(struct config_yaml *y, yaml_node_t *parent, const char *part)
{
	if (parent->type == YAML_MAPPING_NODE)
		return mapping_value(y, parent, part);
	if (parent->type != YAML_SEQUENCE_NODE)
		return NULL;
	size_t i = strtoul(part, NULL, 10);
	yaml_node_item_t *item = parent->data.sequence.items.start + i;
	return item < parent->data.sequence.items.top ? node(y, *item) : NULL;
}

bool config_yaml_empty(const struct config_yaml *y)
{
	return yaml_document_get_root_node((yaml_document_t *)&y->document) == NULL;
}

/* The node of a path, NULL if it is not there; the line of the innermost part that is. */
static yaml_node_t *find(struct config_yaml *y, const char *path, unsigned *ret_line)
{
	yaml_node_t *at = yaml_document_get_root_node(&y->document);
	g_auto(GStrv) parts = g_strsplit(path, "/", -1);
	*ret_line = at ? (unsigned)line_of(at) : 1;
	for (char **part = parts; at && *part; part++) {
		at = child(y, at, *part);
		if (at)
			*ret_line = (unsigned)line_of(at);
	}
	return at;
}

unsigned config_yaml_line(struct config_yaml *y, const char *path)
{
	unsigned line;
	find(y, path, &line);
	return line;
}

bool config_yaml_has(struct config_yaml *y, const char *path)
{
	unsigned line;
	return find(y, path, &line) != NULL;
}

void config_yaml_error(struct config_yaml *y, GError **error, enum config_error code, const char *path, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	g_autofree char *text = g_strdup_vprintf(format, args);
	va_end(args);
	error_at(y, error, code, config_yaml_line(y, path), "%s", text);
}

/* ---- check against the schema ---- */

/* Where the check is: what the value is called in messages, e.g. 'memory'. */
struct place { struct config_yaml *y; const char *name; };

static gboolean check_value(struct place at, const cyaml_schema_value_t *schema, yaml_node_t *n, GError **error);

static char *known_keys(const cyaml_schema_field_t *fields)
{
	GString *s = g_string_new(NULL);
	for (const cyaml_schema_field_t *f = fields; f->key; f++)
		g_string_append_printf(s, "%s%s", s->len ? ", " : "", f->key);
	return g_string_free(s, FALSE);
}

static char *known_words(const cyaml_schema_value_t *schema)
{
	GString *s = g_string_new(NULL);
	for (uint32_t i = 0; i < schema->enumeration.count; i++)
		g_string_append_printf(s, "%s%s", s->len ? " or " : "", schema->enumeration.strings[i].str);
	return g_string_free(s, FALSE);
}

static const char *kind(const yaml_node_t *n)
{
	return n->type == YAML_MAPPING_NODE ? "a mapping" : n->type == YAML_SEQUENCE_NODE ? "a list" : "a single value";
}

static gboolean check_kind(struct place at, const yaml_node_t *n, yaml_node_type_t wanted, const char *expected, GError **error)
{
	if (n->type == wanted)
		return TRUE;
	error_at(at.y, error, CONFIG_ERROR_SCHEMA, line_of(n), "%s is %s; expected %s", at.name,
	         n->type == YAML_SCALAR_NODE && !n->data.scalar.length ? "empty" : kind(n), expected);
	return FALSE;
}

static const cyaml_schema_field_t *check_key(struct place at, const cyaml_schema_field_t *fields, const yaml_node_t *key, GError **error)
{
	if (key->type == YAML_SCALAR_NODE)
		for (const cyaml_schema_field_t *f = fields; f->key; f++)
			if (!strcmp(f->key, scalar(key)))
				return f;
	g_autofree char *keys = known_keys(fields);
	g_autofree char *shown = key->type == YAML_SCALAR_NODE ? g_strndup(scalar(key), 64) : g_strdup(kind(key));
	error_at(at.y, error, CONFIG_ERROR_SCHEMA, line_of(key), "unknown key '%s' in %s; expected one of: %s", shown, at.name, keys);
	return NULL;
}

/* Y2 */
static gboolean check_once(struct place at, const yaml_node_t *mapping, const yaml_node_pair_t *pair, GError **error)
{
	const yaml_node_t *key = node(at.y, pair->key);
	for (const yaml_node_pair_t *p = mapping->data.mapping.pairs.start; p < pair; p++) {
		const yaml_node_t *before = node(at.y, p->key);
		if (strcmp(scalar(before), scalar(key)) != 0)
			continue;
		error_at(at.y, error, CONFIG_ERROR_SCHEMA, line_of(key), "'%s' is given twice in %s, first on line %zu; expected once",
		         scalar(key), at.name, line_of(before));
		return FALSE;
	}
	return TRUE;
}

static gboolean check_mapping(struct place at, const cyaml_schema_value_t *schema, yaml_node_t *n, GError **error)
{
	const cyaml_schema_field_t *fields = schema->mapping.fields;
	g_autofree char *keys = known_keys(fields), *expected = g_strdup_printf("a mapping with keys of: %s", keys);
	if (!check_kind(at, n, YAML_MAPPING_NODE, expected, error))
		return FALSE;
	for (yaml_node_pair_t *p = n->data.mapping.pairs.start; p < n->data.mapping.pairs.top; p++) {
		const cyaml_schema_field_t *f = check_key(at, fields, node(at.y, p->key), error);
		if (!f || !check_once(at, n, p, error))
			return FALSE;
		g_autofree char *name = g_strdup_printf("'%s'", f->key);
		if (!check_value((struct place){ at.y, name }, &f->value, node(at.y, p->value), error))
			return FALSE;
	}
	for (const cyaml_schema_field_t *f = fields; f->key; f++)
		if (!(f->value.flags & CYAML_FLAG_OPTIONAL) && !mapping_value(at.y, n, f->key)) {
			error_at(at.y, error, CONFIG_ERROR_SCHEMA, line_of(n), "'%s' is missing in %s; expected it here", f->key, at.name);
			return FALSE;
		}
	return TRUE;
}

static gboolean check_sequence(struct place at, const cyaml_schema_value_t *schema, yaml_node_t *n, GError **error)
{
	if (!check_kind(at, n, YAML_SEQUENCE_NODE, "a list, [ ... ] or lines that start with '-'", error))
		return FALSE;
	size_t count = (size_t)(n->data.sequence.items.top - n->data.sequence.items.start);
	if (count < schema->sequence.min || count > schema->sequence.max) {
		error_at(at.y, error, CONFIG_ERROR_SCHEMA, line_of(n), "%s has %zu entries; expected %u to %u", at.name, count,
		         schema->sequence.min, schema->sequence.max);
		return FALSE;
	}
	g_autofree char *name = g_strdup_printf("an entry of %s", at.name);
	for (yaml_node_item_t *item = n->data.sequence.items.start; item < n->data.sequence.items.top; item++)
		if (!check_value((struct place){ at.y, name }, schema->sequence.entry, node(at.y, *item), error))
			return FALSE;
	return TRUE;
}

/* Y4 */
static gboolean check_string(struct place at, const cyaml_schema_value_t *schema, yaml_node_t *n, GError **error)
{
	if (!check_kind(at, n, YAML_SCALAR_NODE, "text", error))
		return FALSE;
	size_t bytes = n->data.scalar.length;
	if (bytes >= schema->string.min && bytes <= schema->string.max && !memchr(scalar(n), 0, bytes))
		return TRUE;
	if (!bytes)
		error_at(at.y, error, CONFIG_ERROR_SCHEMA, line_of(n), "%s is empty; expected text", at.name);
	else if (bytes > schema->string.max)
		error_at(at.y, error, CONFIG_ERROR_SCHEMA, line_of(n), "%s has %zu bytes; expected at most %u", at.name, bytes,
		         schema->string.max);
	else
		error_at(at.y, error, CONFIG_ERROR_SCHEMA, line_of(n), "%s has a NUL byte in it; expected text", at.name);
	return FALSE;
}

/* Y3 */
static gboolean check_enum(struct place at, const cyaml_schema_value_t *schema, yaml_node_t *n, GError **error)
{
	g_autofree char *words = known_words(schema);
	if (!check_kind(at, n, YAML_SCALAR_NODE, words, error))
		return FALSE;
	for (uint32_t i = 0; i < schema->enumeration.count; i++)
		if (n->data.scalar.length == strlen(schema->enumeration.strings[i].str) &&
		    !strcmp(scalar(n), schema->enumeration.strings[i].str))
			return TRUE;
	error_at(at.y, error, CONFIG_ERROR_SCHEMA, line_of(n), "%s is '%.64s'; expected %s", at.name, scalar(n), words);
	return FALSE;
}

static gboolean check_uint(struct place at, const cyaml_schema_value_t *schema, yaml_node_t *n, GError **error)
{
	guint64 most = schema->data_size == 1 ? UINT8_MAX : schema->data_size == 2 ? UINT16_MAX : UINT32_MAX, value;
	if (!check_kind(at, n, YAML_SCALAR_NODE, "a whole number", error))
		return FALSE;
	if (strlen(scalar(n)) == n->data.scalar.length && g_ascii_string_to_unsigned(scalar(n), 10, 0, most, &value, NULL))
		return TRUE;
	error_at(at.y, error, CONFIG_ERROR_SCHEMA, line_of(n), "%s is '%.64s'; expected a whole number, 0 to %" G_GUINT64_FORMAT,
	         at.name, scalar(n), most);
	return FALSE;
}

static gboolean check_value(struct place at, const cyaml_schema_value_t *schema, yaml_node_t *n, GError **error)
{
	switch (schema->type) {
	case CYAML_MAPPING: return check_mapping(at, schema, n, error);
	case CYAML_SEQUENCE: return check_sequence(at, schema, n, error);
	case CYAML_STRING: return check_string(at, schema, n, error);
	case CYAML_ENUM: return check_enum(at, schema, n, error);
	case CYAML_UINT: return check_uint(at, schema, n, error);
	default: g_assert_not_reached();
	}
}

/* ---- libcyaml ---- */

/* Keep the first line of libcyaml's log: the reason. */
static void keep_log(cyaml_log_t level, void *context, const char *format, va_list args)
{
	char **reason = context;
	(void)level;
	if (!*reason)
		*reason = g_strchomp(g_strdup_vprintf(format, args));
}

static cyaml_config_t cyaml_settings(char **reason)
{
	return (cyaml_config_t){ .log_fn = keep_log, .log_ctx = reason, .mem_fn = cyaml_mem, .log_level = CYAML_LOG_ERROR,
		                 .flags = CYAML_CFG_NO_ALIAS };
}

gboolean config_yaml_load(struct config_yaml *y, const cyaml_schema_value_t *schema, void **ret_data, GError **error)
{
	g_autofree char *reason = NULL;
	cyaml_config_t settings = cyaml_settings(&reason);
	yaml_node_t *root = yaml_document_get_root_node(&y->document);
	if (!root) {
		g_autofree char *keys = known_keys(schema->mapping.fields);
		error_at(y, error, CONFIG_ERROR_SCHEMA, 1, "there is nothing in it; expected a mapping with keys of: %s", keys);
		return FALSE;
	}
	if (!check_value((struct place){ y, "the file" }, schema, root, error))
		return FALSE;
	cyaml_err_t e = cyaml_load_data((const uint8_t *)y->text, y->n, &settings, schema, ret_data, NULL);
	if (e != CYAML_OK)
		error_at(y, error, CONFIG_ERROR_SCHEMA, 1, "%s (%s)", reason ? reason : "it cannot be read", cyaml_strerror(e));
	return e == CYAML_OK;
}

void config_yaml_free_data(const cyaml_schema_value_t *schema, void *data)
{
	g_autofree char *reason = NULL;
	cyaml_config_t settings = cyaml_settings(&reason);
	cyaml_free(&settings, schema, data, 0);
}

/* ---- quantities ---- */

const struct config_unit config_time_units[] = { { "ms", NSEC_PER_MSEC }, { "s", NSEC_PER_SEC }, { NULL, 0 } };
const struct config_unit config_memory_units[] = { { "K", 1 << 10 }, { "M", 1 << 20 }, { "G", 1 << 30 }, { "T", UINT64_C(1) << 40 }, { NULL, 0 } };

bool config_quantity(const char *text, const struct config_unit *units, uint64_t least, uint64_t most, uint64_t *ret_value)
{
	char *end;
	uint64_t value;
	if (!g_ascii_isdigit(*text))
		return false;
	errno = 0;
	value = g_ascii_strtoull(text, &end, 10);
	if (errno)
		return false;
	while (units->name && strcmp(units->name, end) != 0)
		units++;
	if (!units->name || __builtin_mul_overflow(value, units->factor, ret_value))
		return false;
	return *ret_value >= least && *ret_value <= most;
}
