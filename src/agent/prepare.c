/* prepare.c - see prepare.h. A qcow2 image is converted once; that takes seconds, so a thread of its own does it. */
#include "agent/prepare.h"

#include "disk/disk.h"

#include <gio/gio.h>
#include <sys/stat.h>

struct work {
	unsigned vm_count;
	char **images[VCFT_VM_MAX];   /* copies: the configuration may be forgotten meanwhile */
	char *cache_dir;
	struct post_box *box;
	prepare_done done;
	void *user;
	struct prepared *result;
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

static void work_tell(void *data)
{
	struct work *w = data;
	w->done(g_steal_pointer(&w->result), w->user);
}

static void work_free(void *data)
{
	struct work *w = data;
	if (w->result)
		prepared_free(w->result);
	for (unsigned v = 0; v < w->vm_count; v++)
		g_strfreev(w->images[v]);
	g_free(w->cache_dir);
	g_free(w);
}

static gpointer work_run(gpointer data)
{
	struct work *w = data;
	w->result = g_new0(struct prepared, 1);
	w->result->vm_count = w->vm_count;
	for (unsigned v = 0; v < w->vm_count; v++)
		w->result->bases[v] = bases_of(w->images[v], w->cache_dir, w->result->blocks[v], &w->result->why[v]);
	struct post_box *box = w->box;
	post_box_send(box, work_tell, w, work_free);   /* w is the loop's from here on */
	post_box_unref(box);
	return NULL;
}

void prepare_start(const struct config_cluster *cluster, const char *cache_dir, struct post_box *box, prepare_done done, void *user)
{
	struct work *w = g_new(struct work, 1);
	*w = (struct work){ .vm_count = cluster->vm_count, .cache_dir = g_strdup(cache_dir), .box = post_box_ref(box), .done = done, .user = user };
	for (unsigned v = 0; v < w->vm_count; v++) {
		const struct config_vm *vm = &cluster->vms[v];
		w->images[v] = g_new0(char *, vm->disk_count + 1);
		for (unsigned i = 0; i < vm->disk_count; i++)
			w->images[v][i] = g_strdup(vm->disks[i].image);
	}
	g_thread_unref(g_thread_new("prepare", work_run, w));
}
