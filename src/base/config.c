/* config.c - cluster.yaml: the schema, then what must hold between its values, then the struct that the rest of the program sees.
 *
 *   text ──config-yaml.c──► struct file (as written: units and names are text) ──check, convert──► struct config_cluster
 *
 * C1 What is refused is refused with file, line, and what was expected. C2 A name that is used must be defined; a name, an uplink and a MAC stand
 *    for one thing. C3 Numbers have their unit (100ms, 256M) and their limits (config.h, types.h). C4 A MAC that is left out is made from the names of
 *    cluster and VM and the index of the NIC: the same on every host, each time. C5 Relative paths are relative to the file's directory.
 * Any thread. What is left out gets its default here, nowhere else. */
#include "base/config.h"

#include "base/config-yaml.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <net/if.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define TEXT_MAX 4095u       /* bytes of a path, a kernel's arguments or a QEMU argument */
#define QEMU_MAX 256u        /* further QEMU arguments of one VM */
#define DEFAULT_INTERVAL (100 * NSEC_PER_MSEC)

/* ---- the file as written ---- */

struct file_checkpoint { char *interval; uint32_t backups, hot_pages; };
struct file_host { char *name, *address; };
struct file_network { char *name, *uplink; uint32_t output; };
struct file_disk { char *image; };
struct file_nic { char *network, *mac; };
struct file_vm {
	char *name, *memory; uint32_t cpus;
	char *machine, *cpu, *kernel, *initrd, *append;
	struct file_disk *disks; uint32_t disks_count;
	struct file_nic *nics; uint32_t nics_count;
	char *host;
	char **qemu; uint32_t qemu_count;
};
struct file {
	char *cluster;
	struct file_checkpoint checkpoint;
	uint32_t degraded, verify;
	struct file_host *hosts; uint32_t hosts_count;
	struct file_network *networks; uint32_t networks_count;
	struct file_vm *vms; uint32_t vms_count;
};

enum { OUTPUT_COMMIT, OUTPUT_IMMEDIATE };
static const cyaml_strval_t output_words[] = { { "commit", OUTPUT_COMMIT }, { "immediate", OUTPUT_IMMEDIATE } };
enum { DEGRADED_RUN, DEGRADED_HOLD };
static const cyaml_strval_t degraded_words[] = { { "run", DEGRADED_RUN }, { "hold", DEGRADED_HOLD } };
static const cyaml_strval_t bool_words[] = { { "false", 0 }, { "true", 1 } };

#define NEEDED CYAML_FLAG_DEFAULT
#define MAYBE CYAML_FLAG_OPTIONAL
#define NAME(key, flags, type, member) CYAML_FIELD_STRING_PTR(key, flags, type, member, 1, VCFT_NAME_MAX)
#define TEXT(key, flags, type, member) CYAML_FIELD_STRING_PTR(key, flags, type, member, 1, TEXT_MAX)
#define WORD(key, type, member, words) CYAML_FIELD_ENUM(key, MAYBE | CYAML_FLAG_STRICT, type, member, words, CYAML_ARRAY_LEN(words))
#define LIST(key, flags, type, member, entry, least, most) \
	CYAML_FIELD_SEQUENCE(key, (flags) | CYAML_FLAG_POINTER, type, member, entry, least, most)

static const cyaml_schema_field_t checkpoint_fields[] = {
	NAME("interval", MAYBE, struct file_checkpoint, interval),
	CYAML_FIELD_UINT("backups", MAYBE, struct file_checkpoint, backups),
	WORD("hot_pages", struct file_checkpoint, hot_pages, bool_words),
	CYAML_FIELD_END,
};
static const cyaml_schema_field_t host_fields[] = {
	NAME("name", NEEDED, struct file_host, name),
	NAME("address", NEEDED, struct file_host, address),
	CYAML_FIELD_END,
};
static const cyaml_schema_field_t network_fields[] = {
	NAME("name", NEEDED, struct file_network, name),
	NAME("uplink", MAYBE, struct file_network, uplink),
	WORD("output", struct file_network, output, output_words),
	CYAML_FIELD_END,
};
static const cyaml_schema_field_t disk_fields[] = { TEXT("image", NEEDED, struct file_disk, image), CYAML_FIELD_END };
static const cyaml_schema_field_t nic_fields[] = {
	NAME("network", NEEDED, struct file_nic, network),
	NAME("mac", MAYBE, struct file_nic, mac),
	CYAML_FIELD_END,
};
static const cyaml_schema_value_t host_entry = { CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, struct file_host, host_fields) };
static const cyaml_schema_value_t network_entry = { CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, struct file_network, network_fields) };
static const cyaml_schema_value_t disk_entry = { CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, struct file_disk, disk_fields) };
static const cyaml_schema_value_t nic_entry = { CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, struct file_nic, nic_fields) };
static const cyaml_schema_value_t qemu_entry = { CYAML_VALUE_STRING(CYAML_FLAG_POINTER, char *, 1, TEXT_MAX) };
static const cyaml_schema_field_t vm_fields[] = {
	NAME("name", NEEDED, struct file_vm, name),
	NAME("memory", NEEDED, struct file_vm, memory),
	CYAML_FIELD_UINT("cpus", MAYBE, struct file_vm, cpus),
	TEXT("machine", MAYBE, struct file_vm, machine),
	TEXT("cpu", MAYBE, struct file_vm, cpu),
	TEXT("kernel", MAYBE, struct file_vm, kernel),
	TEXT("initrd", MAYBE, struct file_vm, initrd),
	TEXT("append", MAYBE, struct file_vm, append),
	LIST("disks", MAYBE, struct file_vm, disks, &disk_entry, 0, VCFT_DISK_MAX),
	LIST("nics", MAYBE, struct file_vm, nics, &nic_entry, 0, VCFT_NIC_MAX),
	NAME("host", MAYBE, struct file_vm, host),
	LIST("qemu", MAYBE, struct file_vm, qemu, &qemu_entry, 0, QEMU_MAX),
	CYAML_FIELD_END,
};
static const cyaml_schema_value_t vm_entry = { CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, struct file_vm, vm_fields) };
static const cyaml_schema_field_t file_fields[] = {
	NAME("cluster", NEEDED, struct file, cluster),
	CYAML_FIELD_MAPPING("checkpoint", MAYBE, struct file, checkpoint, checkpoint_fields),
	WORD("degraded", struct file, degraded, degraded_words),
	WORD("verify", struct file, verify, bool_words),
	LIST("hosts", MAYBE, struct file, hosts, &host_entry, 1, VCFT_HOST_MAX),
	LIST("networks", MAYBE, struct file, networks, &network_entry, 0, VCFT_NETWORK_MAX),
	LIST("vms", NEEDED, struct file, vms, &vm_entry, 1, VCFT_VM_MAX),
	CYAML_FIELD_END,
};
static const cyaml_schema_value_t file_schema = { CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct file, file_fields) };

/* ---- one reading of one file ---- */

struct reading {
	struct config_yaml *yaml;
	struct file *file;
	struct config_cluster *out;
	const char *directory;
	bool check_files;
	GHashTable *names;      /* "host NAME", "network NAME", "vm NAME", "uplink NAME", "mac 52:54:..." -> path of the first use */
	GError **error;
};

/* Refuse: "file:line: text". Gives FALSE, so that checks can return it. */
#define REFUSE(r, code, path, ...) (config_yaml_error((r)->yaml, (r)->error, CONFIG_ERROR_##code, path, __VA_ARGS__), FALSE)

static char *path_of(const char *format, ...) G_GNUC_PRINTF(1, 2);
static char *path_of(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	char *path = g_strdup_vprintf(format, args);
	va_end(args);
	return path;
}

/* C2: the name (a MAC, an uplink) stands for one thing. Takes path. */
static gboolean unique(struct reading *r, const char *what, const char *name, char *path)
{
	g_autofree char *key = g_strdup_printf("%s %s", what, name), *owned = path;
	const char *first = g_hash_table_lookup(r->names, key);
	if (first)
		return REFUSE(r, MEANING, path, "%s '%s' is used twice, first on line %u; expected one of its own", what, name,
		              config_yaml_line(r->yaml, first));
	g_hash_table_insert(r->names, g_steal_pointer(&key), g_steal_pointer(&owned));
	return TRUE;
}

static bool known(struct reading *r, const char *what, const char *name)
{
	g_autofree char *key = g_strdup_printf("%s %s", what, name);
	return g_hash_table_contains(r->names, key);
}

static gboolean check_name(struct reading *r, const char *what, const char *name, const char *path)
{
	size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-");
	if (name[n] || !g_ascii_isalnum(name[0]))
		return REFUSE(r, MEANING, path, "%s '%s' is no name; expected letters, digits and _.-, the first a letter or digit", what, name);
	return TRUE;
}

static gboolean read_checkpoint(struct reading *r)
{
	const struct file_checkpoint *in = &r->file->checkpoint;
	uint64_t interval = DEFAULT_INTERVAL;
	if (in->interval && !config_quantity(in->interval, config_time_units, CONFIG_INTERVAL_MIN, CONFIG_INTERVAL_MAX, &interval))
		return REFUSE(r, MEANING, "checkpoint/interval", "interval '%s' is not understood; expected a whole number with unit ms or s, "
		              "5ms to 600s, such as 100ms", in->interval);
	r->out->interval = (nsec_t)interval;
	r->out->hot_pages = !config_yaml_has(r->yaml, "checkpoint/hot_pages") || in->hot_pages;
	bool given = config_yaml_has(r->yaml, "checkpoint/backups");
	unsigned hosts = r->file->hosts_count;
	if (given && hosts && in->backups >= hosts)
		return REFUSE(r, MEANING, "checkpoint/backups", "%u backups and %u hosts; expected fewer backups than hosts", in->backups, hosts);
	r->out->backups = hosts < 2 ? 0 : given ? in->backups : 1;
	return TRUE;
}

static gboolean read_host(struct reading *r, unsigned i)
{
	struct file_host *in = &r->file->hosts[i];
	g_autofree char *name = path_of("hosts/%u/name", i), *address = path_of("hosts/%u/address", i);
	struct in_addr numeric;
	if (!check_name(r, "host", in->name, name) || !unique(r, "host", in->name, g_strdup(name)))
		return FALSE;
	if (inet_pton(AF_INET, in->address, &numeric) != 1)
		return REFUSE(r, MEANING, address, "address '%s' of host '%s' is no IPv4 address; expected such as 10.77.0.1", in->address, in->name);
	if (!unique(r, "address", in->address, g_steal_pointer(&address)))
		return FALSE;
	r->out->hosts[i] = (struct config_host){ g_steal_pointer(&in->name), g_steal_pointer(&in->address) };
	return TRUE;
}

static gboolean check_uplink(struct reading *r, const char *uplink, const char *path)
{
	if (strlen(uplink) >= IFNAMSIZ || uplink[strcspn(uplink, "/: \t\r\n%")] || !strcmp(uplink, ".") || !strcmp(uplink, ".."))
		return REFUSE(r, MEANING, path, "uplink '%s' is no name of a network interface; expected at most 15 letters, digits and _.-", uplink);
	return unique(r, "uplink", uplink, g_strdup(path));
}

static gboolean read_network(struct reading *r, unsigned i)
{
	struct file_network *in = &r->file->networks[i];
	g_autofree char *name = path_of("networks/%u/name", i), *uplink = path_of("networks/%u/uplink", i);
	if (!check_name(r, "network", in->name, name) || !unique(r, "network", in->name, g_strdup(name)))
		return FALSE;
	if (in->uplink && !check_uplink(r, in->uplink, uplink))
		return FALSE;
	r->out->networks[i] = (struct config_network){ .name = g_steal_pointer(&in->name), .uplink = g_steal_pointer(&in->uplink),
		                                       .commit = in->output == OUTPUT_COMMIT };
	return TRUE;
}

/* ---- VMs ---- */

static gboolean check_file(struct reading *r, const char *what, const char *file, const char *path)
{
	struct stat st;
	int e = stat(file, &st) || access(file, R_OK) ? errno : S_ISDIR(st.st_mode) ? EISDIR : 0;
	if (e)
		return REFUSE(r, FILE, path, "%s '%s' cannot be read: %s; expected a file (relative paths start at %s)", what, file,
		              g_strerror(e), r->directory);
	return TRUE;
}

/* C5; the file given by path, NULL stays NULL. */
static gboolean read_file_name(struct reading *r, const char *what, const char *name, const char *path, char **ret_name)
{
	if (!name)
		return TRUE;
	*ret_name = g_canonicalize_filename(name, r->directory);
	return !r->check_files || check_file(r, what, *ret_name, path);
}

static void format_mac(const uint8_t mac[static 6], char out[static 18])
{
	g_snprintf(out, 18, "%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
}

static bool parse_mac(const char *text, uint8_t out[static 6])
{
	if (strlen(text) != 17)
		return false;
	for (unsigned i = 0; i < 6; i++, text += 3) {
		if (!g_ascii_isxdigit(text[0]) || !g_ascii_isxdigit(text[1]) || (i < 5 && text[2] != ':'))
			return false;
		out[i] = (uint8_t)(g_ascii_xdigit_value(text[0]) << 4 | g_ascii_xdigit_value(text[1]));
	}
	return true;
}

static gboolean read_mac(struct reading *r, const char *text, char *path, uint8_t out[static 6])
{
	static const uint8_t zero[6];
	g_autofree char *owned = path;
	char shown[18];
	if (!parse_mac(text, out))
		return REFUSE(r, MEANING, path, "mac '%s' is no MAC address; expected six bytes such as 52:54:00:00:00:01", text);
	if ((out[0] & 1) || !memcmp(out, zero, 6))
		return REFUSE(r, MEANING, path, "mac '%s' is a multicast or the zero address; expected that of one NIC, such as 52:54:00:00:00:01", text);
	format_mac(out, shown);
	return unique(r, "mac", shown, g_steal_pointer(&owned));
}

static gboolean read_nic(struct reading *r, unsigned v, unsigned i)
{
	const struct file_nic *in = &r->file->vms[v].nics[i];
	struct config_nic *out = &r->out->vms[v].nics[i];
	g_autofree char *network = path_of("vms/%u/nics/%u/network", v, i);
	while (out->network < r->out->network_count && strcmp(r->out->networks[out->network].name, in->network) != 0)
		out->network++;
	if (out->network == r->out->network_count)
		return REFUSE(r, MEANING, network, "vm '%s': there is no network '%s'; expected one of 'networks'", r->out->vms[v].name, in->network);
	return !in->mac || read_mac(r, in->mac, path_of("vms/%u/nics/%u/mac", v, i), out->mac);
}

/* C4, FNV-1a; a MAC that is taken is counted up. Runs when all that are given are known. */
static void derive_mac(struct reading *r, const struct config_vm *vm, unsigned i, uint8_t out[static 6])
{
	g_autofree char *text = g_strdup_printf("%s/%s/%u", r->out->name, vm->name, i);
	uint32_t hash = UINT32_C(2166136261);
	char shown[18];
	for (const char *p = text; *p; p++)
		hash = (hash ^ (uint8_t)*p) * UINT32_C(16777619);
	hash ^= hash >> 24;
	do {
		memcpy(out, (uint8_t[]){ 0x52, 0x54, 0, (uint8_t)(hash >> 16), (uint8_t)(hash >> 8), (uint8_t)hash }, 6);
		format_mac(out, shown);
		hash++;
	} while (known(r, "mac", shown));
	g_hash_table_insert(r->names, g_strdup_printf("mac %s", shown), g_strdup("vms"));
}

static void derive_macs(struct reading *r)
{
	for (unsigned v = 0; v < r->out->vm_count; v++)
		for (unsigned i = 0; i < r->out->vms[v].nic_count; i++)
			if (!r->file->vms[v].nics[i].mac)
				derive_mac(r, &r->out->vms[v], i, r->out->vms[v].nics[i].mac);
}

static gboolean read_size(struct reading *r, unsigned v)
{
	const struct file_vm *in = &r->file->vms[v];
	struct config_vm *out = &r->out->vms[v];
	g_autofree char *memory = path_of("vms/%u/memory", v), *cpus = path_of("vms/%u/cpus", v);
	if (!config_quantity(in->memory, config_memory_units, CONFIG_MEMORY_MIN, CONFIG_MEMORY_MAX, &out->memory_bytes) ||
	    out->memory_bytes % VCFT_PAGE_SIZE)
		return REFUSE(r, MEANING, memory, "vm '%s': memory '%s' is not understood; expected a whole number with unit K, M, G or T, 1M to 1T, "
		              "such as 256M", out->name, in->memory);
	out->cpus = config_yaml_has(r->yaml, cpus) ? in->cpus : 1;
	if (out->cpus < 1 || out->cpus > CONFIG_CPUS_MAX)
		return REFUSE(r, MEANING, cpus, "vm '%s' has %u cpus; expected 1 to %u", out->name, out->cpus, CONFIG_CPUS_MAX);
	return TRUE;
}

static gboolean read_boot(struct reading *r, unsigned v)
{
	struct file_vm *in = &r->file->vms[v];
	struct config_vm *out = &r->out->vms[v];
	g_autofree char *vm = path_of("vms/%u", v), *kernel = path_of("vms/%u/kernel", v), *initrd = path_of("vms/%u/initrd", v);
	if (!in->kernel && !in->disks_count)
		return REFUSE(r, MEANING, vm, "vm '%s' has nothing to boot from; expected a kernel or a disk", out->name);
	if (!in->kernel && (in->initrd || in->append))
		return REFUSE(r, MEANING, vm, "vm '%s' has an initrd or append, but no kernel; expected 'kernel' with them", out->name);
	out->append = g_steal_pointer(&in->append);
	return read_file_name(r, "kernel", in->kernel, kernel, &out->kernel) &&
	       read_file_name(r, "initrd", in->initrd, initrd, &out->initrd);
}

static gboolean read_disks(struct reading *r, unsigned v)
{
	const struct file_vm *in = &r->file->vms[v];
	struct config_vm *out = &r->out->vms[v];
	out->disks = g_new0(struct config_disk, in->disks_count);
	out->disk_count = in->disks_count;
	for (unsigned i = 0; i < in->disks_count; i++) {
		g_autofree char *path = path_of("vms/%u/disks/%u/image", v, i);
		if (!read_file_name(r, "image", in->disks[i].image, path, &out->disks[i].image))
			return FALSE;
	}
	return TRUE;
}

static gboolean read_nics(struct reading *r, unsigned v)
{
	struct config_vm *out = &r->out->vms[v];
	out->nic_count = r->file->vms[v].nics_count;
	out->nics = g_new0(struct config_nic, out->nic_count);
	for (unsigned i = 0; i < out->nic_count; i++)
		if (!read_nic(r, v, i))
			return FALSE;
	return TRUE;
}

/* machine, cpu and further QEMU arguments: the hypervisor's words, taken as they are. */
static void read_verbatim(struct file_vm *in, struct config_vm *out)
{
	out->machine = g_steal_pointer(&in->machine);
	out->cpu = g_steal_pointer(&in->cpu);
	if (!in->qemu_count)
		return;
	out->qemu = g_new0(char *, in->qemu_count + 1);
	for (unsigned i = 0; i < in->qemu_count; i++)
		out->qemu[i] = g_steal_pointer(&in->qemu[i]);
}

static gboolean read_vm(struct reading *r, unsigned v)
{
	struct file_vm *in = &r->file->vms[v];
	struct config_vm *out = &r->out->vms[v];
	g_autofree char *name = path_of("vms/%u/name", v), *host = path_of("vms/%u/host", v);
	if (!check_name(r, "vm", in->name, name) || !unique(r, "vm", in->name, g_strdup(name)))
		return FALSE;
	out->name = g_steal_pointer(&in->name);
	if (in->host && !known(r, "host", in->host))
		return REFUSE(r, MEANING, host, "vm '%s': there is no host '%s'; expected one of 'hosts'", out->name, in->host);
	out->host = g_steal_pointer(&in->host);
	read_verbatim(in, out);
	return read_size(r, v) && read_boot(r, v) && read_disks(r, v) && read_nics(r, v);
}

/* ---- all of it ---- */

/* The arrays, zeroed, so that a struct that is half read can be freed. */
static void make_arrays(const struct file *in, struct config_cluster *out)
{
	out->hosts = g_new0(struct config_host, in->hosts_count);
	out->networks = g_new0(struct config_network, in->networks_count);
	out->vms = g_new0(struct config_vm, in->vms_count);
	out->host_count = in->hosts_count;
	out->network_count = in->networks_count;
	out->vm_count = in->vms_count;
}

static gboolean read_cluster(struct reading *r)
{
	if (!check_name(r, "cluster", r->file->cluster, "cluster") || !read_checkpoint(r))
		return FALSE;
	r->out->name = g_steal_pointer(&r->file->cluster);
	r->out->hold_when_degraded = r->file->degraded == DEGRADED_HOLD;
	r->out->verify = r->file->verify;
	make_arrays(r->file, r->out);
	for (unsigned i = 0; i < r->out->host_count; i++)
		if (!read_host(r, i))
			return FALSE;
	for (unsigned i = 0; i < r->out->network_count; i++)
		if (!read_network(r, i))
			return FALSE;
	for (unsigned i = 0; i < r->out->vm_count; i++)
		if (!read_vm(r, i))
			return FALSE;
	derive_macs(r);
	return TRUE;
}

struct config_cluster *config_cluster_parse(const char *text, size_t n, const char *file, const char *directory, bool check_files,
                                            GError **error)
{
	g_autoptr(config_yaml) yaml = config_yaml_open(text, n, file, error);
	struct reading r = { .yaml = yaml, .directory = directory, .check_files = check_files, .error = error };
	if (!yaml || !config_yaml_load(yaml, &file_schema, (void **)&r.file, error))
		return NULL;
	r.out = g_new0(struct config_cluster, 1);
	r.names = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
	if (!read_cluster(&r))
		g_clear_pointer(&r.out, config_cluster_free);
	g_hash_table_unref(r.names);
	config_yaml_free_data(&file_schema, r.file);
	return r.out;
}

static void free_vm(struct config_vm *vm)
{
	char *strings[] = { vm->name, vm->machine, vm->cpu, vm->kernel, vm->initrd, vm->append, vm->host };
	for (size_t i = 0; i < G_N_ELEMENTS(strings); i++)
		g_free(strings[i]);
	for (unsigned i = 0; i < vm->disk_count; i++)
		g_free(vm->disks[i].image);
	g_free(vm->disks);
	g_free(vm->nics);
	g_strfreev(vm->qemu);
}

void config_cluster_free(struct config_cluster *c)
{
	if (!c)
		return;
	for (unsigned i = 0; i < c->host_count; i++) {
		g_free(c->hosts[i].name);
		g_free(c->hosts[i].address);
	}
	for (unsigned i = 0; i < c->network_count; i++) {
		g_free(c->networks[i].name);
		g_free(c->networks[i].uplink);
	}
	for (unsigned i = 0; i < c->vm_count; i++)
		free_vm(&c->vms[i]);
	g_free(c->hosts);
	g_free(c->networks);
	g_free(c->vms);
	g_free(c->name);
	g_free(c);
}
