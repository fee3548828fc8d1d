/* machine-parts.c - where the parts of a VM are, and their start and stop; see machine-private.h. Thread: the worker, but for the paths. */
#include "agent/machine-private.h"

#include <string.h>

/* ---- paths ---- */

char *machine_nic_path(const struct config_agent *agent, const struct config_vm *config, unsigned nic)
{
	return g_strdup_printf("%s/%s-nic%u.sock", agent->run_dir, config->name, nic);
}

char *machine_console_path(const struct config_agent *agent, const struct config_vm *config)
{
	return g_strdup_printf("%s/%s/console.sock", agent->run_dir, config->name);
}

static char *disk_dir(const struct config_agent *agent, const struct config_vm *config, unsigned disk)
{
	return g_strdup_printf("%s/vms/%s/disk%u", agent->state_dir, config->name, disk);
}

void machine_image_spec(const struct config_agent *agent, const struct config_vm *config, const uint64_t *disk_blocks,
                        struct image_spec *ret_spec)
{
	*ret_spec = (struct image_spec){
		.ram_path = g_strdup_printf("%s/%s/image", agent->ram_dir, config->name),
		.ram_pages = config->memory_bytes / VCFT_PAGE_SIZE,
		.disk_count = config->disk_count,
		.disks_writable = true,
	};
	for (unsigned i = 0; i < config->disk_count; i++) {
		ret_spec->disk_dir[i] = disk_dir(agent, config, i);
		ret_spec->disk_blocks[i] = disk_blocks[i];
	}
	g_autofree char *dir = g_path_get_dirname(ret_spec->ram_path);
	g_mkdir_with_parents(dir, 0711);
}

char *disk_folder(const struct machine *m, unsigned disk) { return disk_dir(m->o.agent, m->o.config, disk); }

void machine_image_spec_clear(struct image_spec *spec)
{
	g_free((char *)spec->ram_path);
	for (unsigned i = 0; i < spec->disk_count; i++)
		g_free((char *)spec->disk_dir[i]);
	*spec = (struct image_spec){ 0 };
}

/* ---- start and stop of the parts (worker) ---- */

void pages_clear(struct source_pages *pages)
{
	g_free((uint64_t *)pages->index);
	g_free((const uint8_t **)pages->data);
	*pages = (struct source_pages){ 0 };
}

void loans_end(struct machine *m)
{
	pages_clear(&m->sent);
	for (unsigned i = 0; i < m->o.config->disk_count; i++) {
		if (m->joined[i])
			pages_clear(&m->blocks[i]);
		m->joined[i] = false;
	}
	g_ptr_array_set_size(m->logs, 0);
}

void unmerged_clear(struct machine *m)
{
	for (unsigned i = 0; i < VCFT_DISK_MAX; i++)
		g_array_set_size(m->unmerged[i], 0);
}

void vm_close(struct machine *m)
{
	room_end(m);
	if (m->vm)
		vmm_qemu.free(g_steal_pointer(&m->vm));
}

static gpointer bury(gpointer vm)
{
	vmm_qemu.free(vm);
	return NULL;
}

void vm_leave(struct machine *m)
{
	if (!m->vm)
		return;
	room_end(m);
	vmm_qemu.abandon(m->vm);
	m->former = g_thread_new("former", bury, g_steal_pointer(&m->vm));
}

void former_end(struct machine *m)
{
	if (m->former)
		g_thread_join(g_steal_pointer(&m->former));
}

void parts_close(struct machine *m)
{
	vm_close(m);
	g_clear_pointer(&m->source, source_free);
	loans_end(m);
	unmerged_clear(m);
	for (unsigned i = 0; i < m->o.config->disk_count; i++)
		g_clear_pointer(&m->disk[i], disk_stop);
	memset(m->disk_fold, 0, sizeof m->disk_fold);
}

bool disks_start(struct machine *m, struct epoch_id c, GError **error)
{
	for (unsigned i = 0; i < m->o.config->disk_count; i++) {
		if (m->disk[i])
			continue;
		g_autofree char *dir = disk_folder(m, i);
		g_autofree char *plugin = g_build_filename(m->o.agent->plugin_dir, "virtcft-disk.so", NULL);
		g_autofree char *socket = g_strdup_printf("%s/%s/disk%u.sock", m->o.agent->run_dir, m->o.config->name, i);
		struct disk_spec spec = { .plugin = plugin, .base = m->o.bases[i], .dir = dir, .socket = socket, .fold = m->disk_fold[i], .run_as = m->who };
		m->disk[i] = disk_start(&spec, epoch_next(c), error);
		if (!m->disk[i])
			return false;
		m->disk_fold[i] = epoch_of(0);
		m->disk_at[i] = c;
	}
	return true;
}

char *console_log_path(const struct machine *m)
{
	return g_strdup_printf("%s/console/%s.log", m->o.agent->state_dir, m->o.config->name);
}

static const uint8_t *next_content(void *user, uint64_t *inout_first, uint64_t *ret_end, GError **error)
{
	return image_content(((struct machine *)user)->shadow, epoch_of(0), inout_first, ret_end, error);
}

static const uint8_t *recent_content(void *user, uint64_t *inout_first, uint64_t *ret_end, GError **error)
{
	const struct machine *m = user;
	return image_content(m->shadow, m->recent, inout_first, ret_end, error);
}

struct vm *vm_start(struct machine *m, struct epoch_id c, GError **error)
{
	const struct config_vm *config = m->o.config;
	g_autofree char *run_dir = g_build_filename(m->o.agent->run_dir, config->name, NULL);
	g_autofree char *console = machine_console_path(m->o.agent, config);
	g_autofree char *log = console_log_path(m);
	g_autofree char *preload = g_build_filename(m->o.agent->plugin_dir, "virtcft-preload.so", NULL);
	g_autoptr(GPtrArray) paths = g_ptr_array_new_with_free_func(g_free);
	struct vm_nic nics[VCFT_NIC_MAX];
	struct vm_disk disks[VCFT_DISK_MAX];
	for (unsigned i = 0; i < config->nic_count; i++) {
		nics[i].socket = machine_nic_path(m->o.agent, config, i);
		memcpy(nics[i].mac, config->nics[i].mac, 6);
		g_ptr_array_add(paths, (char *)nics[i].socket);
	}
	for (unsigned i = 0; i < config->disk_count; i++) {
		disks[i].socket = g_strdup_printf("%s/disk%u.sock", run_dir, i);
		g_ptr_array_add(paths, (char *)disks[i].socket);
	}
	struct vm_spec spec = {
		.name = config->name, .memory_bytes = config->memory_bytes, .cpus = config->cpus,
		.machine = config->machine, .cpu = config->cpu,
		.kernel = config->kernel, .initrd = config->initrd, .append = config->append,
		.nics = nics, .nic_count = config->nic_count, .disks = disks, .disk_count = config->disk_count,
		.extra = (const char *const *)config->qemu, .ram_path = m->ram_path, .run_dir = run_dir,
		.console_socket = console, .console_log = log, .preload = preload, .verify = m->o.verify, .hot_pages = m->o.hot_pages, .run_as = m->who,
		.room_later = c.n > 0, .fill = m->fill ? &m->fill_from : NULL,
	};
	gsize n = 0;
	m->fill_from = (struct vm_fill){ next_content, recent_content, m };
	m->recent = image_recent(m->shadow, FILL_BESIDE / VCFT_PAGE_SIZE);
	if (m->fill && !image_state_sound(m->shadow, error))
		return NULL;
	GBytes *state = c.n ? image_devices(m->shadow) : NULL;
	const uint8_t *bytes = state ? g_bytes_get_data(state, &n) : NULL;
	struct vm *vm = vmm_qemu.start(&spec, bytes, n, error);
	g_autofree char *second = vm ? vmm_qemu.second_choices(vm) : NULL;
	if (second)
		g_message("%s has %s", config->name, second);
	return vm;
}
