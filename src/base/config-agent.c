/* config-agent.c - virtcftd.yaml: where this host's agent keeps things and how it is reached. Every key has a default, the file itself may be missing.
 *
 * The plugins (virtcft-disk.so, virtcft-preload.so) are looked for beside the program, so that one that was built and not installed takes its own
 * (`virtcft check`: its agent's); then where they are installed. Any thread. */
#include "base/config-yaml.h"

#include <arpa/inet.h>
#include <grp.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#define DEFAULT_FILE "/etc/virtcft/virtcftd.yaml"
#define TEXT_MAX 4095u
#define USER_BASE_LEAST 65536u      /* below are the accounts of people and services */
#define QUANTITY_MAX 31u
#ifndef VCFT_PLUGIN_DIR
#define VCFT_PLUGIN_DIR "/usr/lib/virtcft"
#endif

enum { GROUP_LOCAL, GROUP_COROSYNC };
enum { TLS_AS_GROUP, TLS_ON, TLS_OFF };
static const cyaml_strval_t tls_words[] = { { "on", TLS_ON }, { "off", TLS_OFF } };
static const cyaml_strval_t group_words[] = { { "local", GROUP_LOCAL }, { "corosync", GROUP_COROSYNC } };

struct file {
	char *name, *address, *run_dir, *state_dir, *ram_dir, *plugin_dir, *pki_dir, *user, *control_group;
	uint32_t group, tls, user_base;
	uint16_t tunnel_port, replication_port;
	char *backup_memory, *backup_rate, *backup_timeout, *held_memory, *queue_memory;
};

#define TEXT(member, most) CYAML_FIELD_STRING_PTR(#member, CYAML_FLAG_OPTIONAL, struct file, member, 1, most)
#define NUMBER(member) CYAML_FIELD_UINT(#member, CYAML_FLAG_OPTIONAL, struct file, member)

static const cyaml_schema_field_t fields[] = {
	TEXT(name, VCFT_NAME_MAX),
	CYAML_FIELD_ENUM("group", CYAML_FLAG_OPTIONAL | CYAML_FLAG_STRICT, struct file, group, group_words, CYAML_ARRAY_LEN(group_words)),
	TEXT(address, VCFT_NAME_MAX),
	TEXT(run_dir, TEXT_MAX),
	TEXT(state_dir, TEXT_MAX),
	TEXT(ram_dir, TEXT_MAX),
	NUMBER(tunnel_port),
	NUMBER(replication_port),
	TEXT(backup_memory, QUANTITY_MAX),
	TEXT(backup_rate, QUANTITY_MAX),
	TEXT(backup_timeout, QUANTITY_MAX),
	TEXT(held_memory, QUANTITY_MAX),
	TEXT(queue_memory, QUANTITY_MAX),
	TEXT(plugin_dir, TEXT_MAX),
	CYAML_FIELD_ENUM("tls", CYAML_FLAG_OPTIONAL | CYAML_FLAG_STRICT, struct file, tls, tls_words, CYAML_ARRAY_LEN(tls_words)),
	TEXT(pki_dir, TEXT_MAX),
	TEXT(user, VCFT_NAME_MAX),
	NUMBER(user_base),
	TEXT(control_group, VCFT_NAME_MAX),
	CYAML_FIELD_END,
};
static const cyaml_schema_value_t schema = { CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct file, fields) };

static char *default_plugin_dir(void)
{
	g_autofree char *program = g_file_read_link("/proc/self/exe", NULL);
	g_autofree char *beside = program ? g_path_get_dirname(program) : g_strdup(".");
	g_autofree char *above = g_path_get_dirname(beside);
	char *built[] = { g_strdup(beside), g_build_filename(above, "agent", NULL) }, *found = NULL;
	for (size_t i = 0; i < G_N_ELEMENTS(built); i++) {
		g_autofree char *plugin = g_build_filename(built[i], "virtcft-disk.so", NULL);
		if (!found && g_file_test(plugin, G_FILE_TEST_EXISTS))
			found = g_steal_pointer(&built[i]);
		g_free(built[i]);
	}
	return found ? found : g_strdup(VCFT_PLUGIN_DIR);
}

static void take(char **out, char **given, const char *otherwise)
{
	*out = *given ? g_steal_pointer(given) : g_strdup(otherwise);
}

/* The limits: what is understood of each, and what it is if it is left out. */
static const struct limit {
	const char *key;
	size_t in, out;                /* members of struct file and struct config_agent */
	const struct config_unit *units;
	uint64_t least, most, otherwise;
	const char *expected;
} limits[] = {
#define LIMIT(member, ...) { #member, offsetof(struct file, member), offsetof(struct config_agent, member), __VA_ARGS__ }
	LIMIT(backup_memory, config_memory_units, 1 << 20, UINT64_C(1) << 50, 0, "1M or more, such as 16G"),
	LIMIT(backup_rate, config_memory_units, 0, UINT64_C(1) << 40, 2 << 20, "bytes a second, 0K for none, such as 2M"),
	LIMIT(backup_timeout, config_time_units, 100 * NSEC_PER_MSEC, 600 * NSEC_PER_SEC, 3 * NSEC_PER_SEC, "100ms to 600s, such as 3s"),
	LIMIT(held_memory, config_memory_units, 64 << 10, UINT64_C(1) << 40, 64 << 20, "64K or more, such as 64M"),
	LIMIT(queue_memory, config_memory_units, 64 << 10, UINT64_C(1) << 40, 16 << 20, "64K or more, such as 16M"),
#undef LIMIT
};
_Static_assert(sizeof(nsec_t) == sizeof(uint64_t), "a limit is 64 bits, of bytes or of time");

static uint64_t half_of_memory(void) { return (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE) / 2; }

/* False: *ret_wrong is not understood. */
static bool take_limits(const struct file *f, struct config_agent *a, const struct limit **ret_wrong)
{
	for (size_t i = 0; i < G_N_ELEMENTS(limits); i++) {
		const struct limit *l = *ret_wrong = &limits[i];
		const char *given = G_STRUCT_MEMBER(char *, f, l->in);
		uint64_t *out = G_STRUCT_MEMBER_P(a, l->out);
		*out = l->otherwise ? l->otherwise : half_of_memory();
		if (given && !config_quantity(given, l->units, l->least, l->most, out))
			return false;
	}
	return true;
}

static struct config_agent *with_defaults(struct file *f)
{
	struct config_agent *a = g_new0(struct config_agent, 1);
	g_autofree char *plugin_dir = f->plugin_dir ? NULL : default_plugin_dir();
	take(&a->name, &f->name, g_get_host_name());
	take(&a->address, &f->address, "127.0.0.1");
	take(&a->run_dir, &f->run_dir, "/run/virtcft");
	take(&a->state_dir, &f->state_dir, "/var/lib/virtcft");
	take(&a->ram_dir, &f->ram_dir, "/dev/shm/virtcft");
	take(&a->plugin_dir, &f->plugin_dir, plugin_dir);
	take(&a->pki_dir, &f->pki_dir, "/etc/virtcft/pki");
	take(&a->user, &f->user, "virtcft");
	take(&a->control_group, &f->control_group, NULL);
	a->user_base = f->user_base;
	a->group = g_strdup(group_words[f->group].str);
	a->tls = f->tls == TLS_AS_GROUP ? f->group == GROUP_COROSYNC : f->tls == TLS_ON;
	a->tunnel_port = f->tunnel_port;
	a->replication_port = f->replication_port;
	const struct limit *wrong;
	take_limits(f, a, &wrong);
	return a;
}

/* Other hosts refuse a name that is not (M3 in messages.h). */
static bool is_plain(const char *name)
{
	for (; *name; name++)
		if (g_ascii_iscntrl(*name))
			return false;
	return true;
}

static gboolean check(struct config_yaml *yaml, const struct file *f, GError **error)
{
	const struct { const char *key, *value; } paths[] = { { "run_dir", f->run_dir }, { "state_dir", f->state_dir }, { "ram_dir", f->ram_dir },
		                                              { "plugin_dir", f->plugin_dir }, { "pki_dir", f->pki_dir } };
	struct in_addr numeric;
	if (f->name && !is_plain(f->name)) {
		config_yaml_error(yaml, error, CONFIG_ERROR_MEANING, "name", "name has a control character; expected a name such as host1");
		return FALSE;
	}
	if (f->address && inet_pton(AF_INET, f->address, &numeric) != 1) {
		config_yaml_error(yaml, error, CONFIG_ERROR_MEANING, "address", "address '%s' is no IPv4 address; expected such as 10.77.0.1", f->address);
		return FALSE;
	}
	if (f->user_base && (f->user_base < USER_BASE_LEAST || f->user_base > INT32_MAX - VCFT_VM_MAX)) {
		config_yaml_error(yaml, error, CONFIG_ERROR_MEANING, "user_base", "user_base %" PRIu32 " is in use or too high; expected %u to %u", f->user_base,
		                  USER_BASE_LEAST, INT32_MAX - VCFT_VM_MAX);
		return FALSE;
	}
	for (size_t i = 0; i < G_N_ELEMENTS(paths); i++)
		if (paths[i].value && !g_path_is_absolute(paths[i].value)) {
			config_yaml_error(yaml, error, CONFIG_ERROR_MEANING, paths[i].key, "%s '%s' is relative; expected an absolute path", paths[i].key,
			                  paths[i].value);
			return FALSE;
		}
	struct config_agent scratch;
	const struct limit *wrong;
	if (take_limits(f, &scratch, &wrong))
		return TRUE;
	config_yaml_error(yaml, error, CONFIG_ERROR_MEANING, wrong->key, "%s '%s' is not understood; expected %s", wrong->key,
	                  G_STRUCT_MEMBER(char *, f, wrong->in), wrong->expected);
	return FALSE;
}

struct config_agent *config_agent_parse(const char *text, size_t n, const char *name, GError **error)
{
	g_autoptr(config_yaml) yaml = config_yaml_open(text, n, name, error);
	struct file none = { 0 }, *file = NULL;
	if (!yaml)
		return NULL;
	if (config_yaml_empty(yaml))
		return with_defaults(&none);
	if (!config_yaml_load(yaml, &schema, (void **)&file, error))
		return NULL;
	struct config_agent *agent = check(yaml, file, error) ? with_defaults(file) : NULL;
	config_yaml_free_data(&schema, file);
	return agent;
}

struct config_agent *config_agent_read(const char *file, GError **error)
{
	g_autofree char *text = NULL;
	gsize n = 0;
	const char *name = file ? file : DEFAULT_FILE;
	if ((file || g_file_test(name, G_FILE_TEST_EXISTS)) && !g_file_get_contents(name, &text, &n, error))
		return NULL;
	return config_agent_parse(text, n, name, error);
}

void config_agent_free(struct config_agent *a)
{
	if (!a)
		return;
	char *strings[] = { a->name, a->group, a->address, a->run_dir, a->state_dir, a->ram_dir, a->plugin_dir, a->pki_dir, a->user, a->control_group };
	for (size_t i = 0; i < G_N_ELEMENTS(strings); i++)
		g_free(strings[i]);
	g_free(a);
}

gboolean config_agent_identify(struct config_agent *a, GError **error)
{
	char buffer[4096];
	struct group entry, *found = NULL;
	if (!identity_of_user(a->user, &a->identity, error))
		return FALSE;
	if (!a->control_group)
		return TRUE;
	if (getgrnam_r(a->control_group, &entry, buffer, sizeof buffer, &found) != 0 || !found) {
		g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_MEANING, "there is no group '%s'; `groupadd --system %s` makes it, or name another by control_group:",
		            a->control_group, a->control_group);
		return FALSE;
	}
	a->control_gid = found->gr_gid;
	return TRUE;
}

struct identity config_agent_identity(const struct config_agent *a, struct vm_id vm)
{
	return a->user_base ? identity_of_number(&a->identity, a->user_base + vm.n) : a->identity;
}
