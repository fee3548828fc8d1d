/* prepare.c - see prepare.h. A qcow2 image is converted once; that takes seconds, so a GTask's thread does it. */
#include "agent/prepare.h"

#include "disk/disk.h"

#include <gio/gio.h>
#include <sys/stat.h>

struct work {
	unsigned vm_count;
	char **images[VCFT_VM_MAX];   /* copies: the configuration may be forgotten meanwhile */
	char *cache_dir;
	prepare_done done;
	void *user;
};

void prepared_free(struct prepared *p)
{
	for (unsigned v = 0; v < p->vm_count; v++) {
		g_strfreev(p->bases[v]);
		g_free(p->why[v]);
	}
	g_free(p);
}

static char **bases_of(char *const *images, const char *cache_dir, uint64_t *blocks, char **ret_why)
{
	g_auto(GStrv) bases = g_new0(char *, g_strv_length((char **)images) + 1);
	for (unsigned i = 0; images[i]; i++) {
		g_autoptr(GError) error = NULL;
		struct stat st;
		if (!disk_prepare_base(images[i], cache_dir, &bases[i], &error) || stat(bases[i], &st) < 0) {
			*ret_why = g_strdup(error ? error->message : "its raw form cannot be read");
			return NULL;
		}
		blocks[i] = ((uint64_t)st.st_size + VCFT_PAGE_SIZE - 1) / VCFT_PAGE_SIZE;
	}
	return g_steal_pointer(&bases);
}

static void work_run(GTask *task, gpointer source, gpointer data, GCancellable *cancellable)
{
	(void)source;
	(void)cancellable;
	struct work *w = data;
	struct prepared *p = g_new0(struct prepared, 1);
	p->vm_count = w->vm_count;
	for (unsigned v = 0; v < p->vm_count; v++)
		p->bases[v] = bases_of(w->images[v], w->cache_dir, p->blocks[v], &p->why[v]);
	g_task_return_pointer(task, p, NULL);
}

static void work_done(GObject *source, GAsyncResult *result, gpointer data)
{
	(void)source;
	struct work *w = data;
	w->done(g_task_propagate_pointer(G_TASK(result), NULL), w->user);
	for (unsigned v = 0; v < w->vm_count; v++)
		g_strfreev(w->images[v]);
	g_free(w->cache_dir);
	g_free(w);
}

void prepare_start(const struct config_cluster *cluster, const char *cache_dir, prepare_done done, void *user)
{
	struct work *w = g_new(struct work, 1);
	*w = (struct work){ .vm_count = cluster->vm_count, .cache_dir = g_strdup(cache_dir), .done = done, .user = user };
	for (unsigned v = 0; v < w->vm_count; v++) {
		const struct config_vm *vm = &cluster->vms[v];
		w->images[v] = g_new0(char *, vm->disk_count + 1);
		for (unsigned i = 0; i < vm->disk_count; i++)
			w->images[v][i] = g_strdup(vm->disks[i].image);
	}
	GTask *task = g_task_new(NULL, NULL, work_done, w);
	g_task_set_task_data(task, w, NULL);
	g_task_run_in_thread(task, work_run);
	g_object_unref(task);
}
