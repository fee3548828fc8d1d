/* fuzz-config.c - whatever a cluster.yaml holds: a cluster within its limits, or an error with file, line and what was expected (C1, Y1-Y5). */
#include "base/config.h"

#include <stdlib.h>
#include <string.h>

static void demand(bool condition)
{
	if (!condition)
		abort();
}

static void check_vm(const struct config_cluster *c, const struct config_vm *vm)
{
	demand(vm->memory_bytes >= CONFIG_MEMORY_MIN && vm->memory_bytes <= CONFIG_MEMORY_MAX && vm->memory_bytes % VCFT_PAGE_SIZE == 0);
	demand(vm->cpus >= 1 && vm->cpus <= CONFIG_CPUS_MAX && vm->nic_count <= VCFT_NIC_MAX && vm->disk_count <= VCFT_DISK_MAX);
	demand(strlen(vm->name) <= VCFT_NAME_MAX && !strchr(vm->name, '/') && (vm->kernel || vm->disk_count));
	for (unsigned i = 0; i < vm->nic_count; i++)
		demand(vm->nics[i].network < c->network_count && !(vm->nics[i].mac[0] & 1));
}

static void check_cluster(const struct config_cluster *c)
{
	demand(c->vm_count >= 1 && c->vm_count <= VCFT_VM_MAX && c->host_count <= VCFT_HOST_MAX && c->network_count <= VCFT_NETWORK_MAX);
	demand(c->interval >= CONFIG_INTERVAL_MIN && c->interval <= CONFIG_INTERVAL_MAX && c->backups < MAX(c->host_count, 1));
	for (unsigned i = 0; i < c->vm_count; i++)
		check_vm(c, &c->vms[i]);
}

static void check_error(const GError *error)
{
	demand(g_str_has_prefix(error->message, "c.yaml:") && g_utf8_validate(error->message, -1, NULL));
	demand(atoi(error->message + strlen("c.yaml:")) >= 1 && !strchr(error->message, '\n'));
	demand(error->code == CONFIG_ERROR_SCHEMA || strstr(error->message, "; expected ") != NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	GError *error = NULL;
	struct config_cluster *c = config_cluster_parse((const char *)data, n, "c.yaml", "/dir", false, &error);
	demand((c == NULL) == (error != NULL));
	if (c)
		check_cluster(c);
	else
		check_error(error);
	config_cluster_free(c);
	g_clear_error(&error);
	return 0;
}
