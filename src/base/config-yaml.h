/* config-yaml.h - private to the readers of configuration files: YAML text, its lines, and a libcyaml schema to read it by. */
#ifndef VCFT_BASE_CONFIG_YAML_H
#define VCFT_BASE_CONFIG_YAML_H

#include "base/config.h"

#include <cyaml/cyaml.h>

struct config_yaml;

/* Take text apart; text and file are borrowed until config_yaml_free(). NULL with error: no YAML, or YAML of a kind that is not read. */
struct config_yaml *config_yaml_open(const char *text, size_t n, const char *file, GError **error);
void config_yaml_free(struct config_yaml *yaml);
typedef struct config_yaml config_yaml;
G_DEFINE_AUTOPTR_CLEANUP_FUNC(config_yaml, config_yaml_free)
/* True: nothing is in it but comments. */
bool config_yaml_empty(const struct config_yaml *yaml);
/* Check it against schema (a mapping behind CYAML_FLAG_POINTER) and read it: free *ret_data with config_yaml_free_data(). */
gboolean config_yaml_load(struct config_yaml *yaml, const cyaml_schema_value_t *schema, void **ret_data, GError **error);
void config_yaml_free_data(const cyaml_schema_value_t *schema, void *data);
/* True: the value is there. */
bool config_yaml_has(struct config_yaml *yaml, const char *path);
/* The line of a value, path like "vms/0/nics/1/mac"; of the innermost part that is there, if it is not. */
unsigned config_yaml_line(struct config_yaml *yaml, const char *path);
/* Set error to "file:line of path: text". */
void config_yaml_error(struct config_yaml *yaml, GError **error, enum config_error code, const char *path, const char *format, ...)
	G_GNUC_PRINTF(5, 6);

/* C3: a whole number with a unit, within least and most. */
struct config_unit { const char *name; uint64_t factor; };
extern const struct config_unit config_time_units[], config_memory_units[];
bool config_quantity(const char *text, const struct config_unit *units, uint64_t least, uint64_t most, uint64_t *ret_value);

#endif
