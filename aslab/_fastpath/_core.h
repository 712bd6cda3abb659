/* The fast path in C: what its files share.

   Every method here is a shortcut through a Python one. It does the common case, from the first check to the last
   step, and otherwise does nothing and leaves the call to the Python method (`_method.c`). So each rule, message
   and rare case is written once, in Python; and without these files everything works as it does with them.

       _core.c       the module: its types, its state, which method has a shortcut
       _method.c     a method or property with a shortcut, which otherwise looks and acts like the Python one
       _slot.c       the place of one object, which counts its exports; carving
       _magazine.c   the magazine, and what a handle needs at once of its home
       _handle.c     Buffer: claim, view, free
       _front.c      alloc, alloc_nowait, lease
       _ready.c      an awaitable that has its answer

   The GIL makes each step whole: between a look and what follows from it no other thread runs, unless a comment
   says so. `BEGIN(object)` and `END()` mark what a build without a GIL has to make whole by a lock of that object.
   No such build is supported: the module does not declare it, so that such an interpreter turns its GIL on. */

#ifndef ASLAB_CORE_H
#define ASLAB_CORE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <structmember.h>

#if PY_VERSION_HEX >= 0x030D0000
#define BEGIN(object) Py_BEGIN_CRITICAL_SECTION(object)
#define END() Py_END_CRITICAL_SECTION()
#else
#define BEGIN(object) {
#define END() }
#endif

/* An exception that is on its way while code of others runs. */
#if PY_VERSION_HEX >= 0x030C0000
typedef PyObject *Pending;
#define HOLD(pending) (pending = PyErr_GetRaisedException())
#define GO_ON(pending) PyErr_SetRaisedException(pending)
#else
typedef struct {
    PyObject *type, *value, *traceback;
} Pending;
#define HOLD(pending) PyErr_Fetch(&(pending).type, &(pending).value, &(pending).traceback)
#define GO_ON(pending) PyErr_Restore((pending).type, (pending).value, (pending).traceback)
#endif

#if defined(__GNUC__)
#pragma GCC visibility push(hidden) /* of one file to the other: no call goes round by the dynamic linker */
#endif

/* How many objects of each type wait for their next use. 1 for a memory checker, which would not see a use of them. */
#ifndef KEPT_HANDLES
#define KEPT_HANDLES 256 /* as many as the largest magazine */
#define KEPT_READIES 64
#define KEPT_LEASES 64
#define KEPT_BOUNDS 16
#endif

typedef struct Handle Handle;
typedef struct Bound Bound;
typedef struct Lease Lease;
typedef struct Ready Ready;

/* The state of one module, and so of one interpreter. Each magazine refers to the module, and so keeps it for its
   handles: the garbage collector may take types and module apart before the last handle is gone. */
typedef struct {
    PyObject *module; /* borrowed */
    PyTypeObject *method, *bound, *getter, *ground, *anchor, *slot, *single, *magazine, *origin, *handle, *seen, *emergency, *front, *lease, *ready;
    PyObject *lost;     /* `Buffer.__del__`, in Python, */
    PyObject *free;     /* and `Buffer.free`, */
    PyObject *slowly;   /* and `Front.alloc` */
    PyMethodDef direct; /* `Buffer.free`, in C */
    PyObject *direct_doc;
    PyObject *settle, *let_go, *view, *alloc; /* names */
    Handle *handles[KEPT_HANDLES];
    Lease *leases[KEPT_LEASES];
    Ready *readies[KEPT_READIES];
    Bound *bounds[KEPT_BOUNDS];
    int n_handles, n_leases, n_readies, n_bounds;
} Core;

/* What the slots of one slab share. A slot must not keep its slab alive, or both would live for ever: the garbage
   collector does not see slots. */
typedef struct {
    PyObject_HEAD
    PyObject *slab;   /* a weak reference, or NULL for an emergency object */
    PyObject *near;   /* the slab, as long as it has its anchor: the collector ends weak references first */
    PyObject *anchor; /* borrowed */
    PyObject *memory; /* a memoryview, or a bytearray that is exported: it keeps the region where it is */
    char *start;
    Py_ssize_t nbytes;
    Py_ssize_t size;
    Py_ssize_t shift; /* from where the memory is to where its region says it is: 0 unless a backend translates */
} Ground;

/* What few slots have. */
typedef struct {
    PyObject *obj, *owner, *kept, *tell;
} Extra;

typedef struct {
    PyObject_HEAD
    Ground *ground; /* NULL once the memory was given up */
    char *memory;
    Extra *extra;
    int exports; /* Py_buffers of this memory: a memoryview and all its slices have one together */
    char out, detached;
} Slot;

/* The slot of an emergency object. */
typedef struct {
    Slot slot;
    PyObject *part, *record, *region;
} Single;

typedef struct {
    PyListObject list;
    Py_ssize_t capacity, batch, hits, due;
    long detour, watch;
    Core *core;
    PyObject *module; /* keeps `core` */
} Magazine;

typedef struct {
    PyObject_HEAD
    Magazine *magazine;
    Py_ssize_t size;
    char seen; /* whether the collector is to see its handles: see `_handle.c` */
} Origin;

struct Handle {
    PyObject_HEAD
    Origin *home;
    Slot *slot;     /* NULL once freed: taking it is the claim */
    PyObject *view; /* NULL before the first look, and after a free */
    PyObject *lent;
    PyObject *weak;
};

typedef struct {
    PyObject_HEAD
    Magazine *magazine;
    PyObject *home;
} Front;

struct Lease {
    PyObject_HEAD
    Front *front;    /* set by a plain `lease()`, */
    PyObject *alloc; /* or this one: what allocates */
    PyObject *buffer;
};

/* A shortcut: returns the result; or NULL with an error; or NULL without one, having done nothing. */
typedef PyObject *(*Shortcut)(Core *core, PyObject *const *args);

typedef struct {
    const char *type, *name;
    int nargs; /* with self; a property has -1 */
    Shortcut shortcut;
} Entry;

extern PyType_Spec method_spec, bound_spec, getter_spec, ground_spec, anchor_spec, slot_spec, single_spec, magazine_spec, origin_spec, handle_spec, seen_spec, emergency_spec,
    front_spec, lease_spec, ready_spec;
extern struct PyModuleDef core_module;

Core *core_of(PyTypeObject *type);
PyObject *core_plain_new(PyTypeObject *type, PyObject *args, PyObject *kwargs);
PyObject *method_new(Core *core, PyTypeObject *type, const Entry *entry, PyObject *python);
void bound_clear_kept(Core *core);

PyObject *slot_view(Slot *slot);
void slot_export(Slot *slot, PyObject *view);

int magazine_settle(Origin *home);

#define NOTED (1 << 9) /* in `detour`: see _magazine.py */

/* Take the newest slot, or NULL: the list is empty, or holds something else. No code of others runs in here. */
static inline Slot *magazine_pop(Magazine *magazine)
{
    Slot *slot = NULL;
    BEGIN(magazine)
    Py_ssize_t last = Py_SIZE(magazine) - 1;
    if (last >= 0) {
        PyObject *item = PyList_GET_ITEM((PyObject *)magazine, last);
        if (PyObject_TypeCheck(item, magazine->core->slot)) {
            Py_SET_SIZE(magazine, last); /* the list keeps its room, as it will be pushed onto again */
            slot = (Slot *)item;
            if (++magazine->hits >= magazine->due)
                magazine->detour |= NOTED;
        }
    }
    END()
    return slot;
}

/* Put a slot in, taking over the reference. -1 with an error. No code of others runs in here. */
static inline int magazine_push(Magazine *magazine, Slot *slot)
{
    int failed = 0;
    BEGIN(magazine)
    Py_ssize_t size = Py_SIZE(magazine);
    if (size < magazine->list.allocated) {
        PyList_SET_ITEM((PyObject *)magazine, size, (PyObject *)slot);
        Py_SET_SIZE(magazine, size + 1);
    } else {
        failed = PyList_Append((PyObject *)magazine, (PyObject *)slot);
        Py_DECREF(slot);
    }
    END()
    return failed;
}

PyObject *handle_new(Core *core, Origin *home, Slot *slot);
void handle_clear_kept(Core *core);
PyObject *handle_free_directly(PyObject *self, PyObject *ignored);
PyObject *handle_free(Core *core, PyObject *const *args);
PyObject *handle_view(Core *core, PyObject *const *args);
PyObject *handle_address(Core *core, PyObject *const *args);
PyObject *handle_enter(Core *core, PyObject *const *args);
PyObject *handle_exit(Core *core, PyObject *const *args);

void lease_clear_kept(Core *core);
PyObject *front_hit(Core *core, Front *front);
PyObject *front_alloc(Core *core, PyObject *const *args);
PyObject *front_alloc_nowait(Core *core, PyObject *const *args);
PyObject *front_lease(Core *core, PyObject *const *args);
PyObject *lease_enter(Core *core, PyObject *const *args);
PyObject *lease_exit(Core *core, PyObject *const *args);

PyObject *ready_new(Core *core, PyObject *value);
PyObject *ready_later(Core *core, Front *front);
void ready_clear_kept(Core *core);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#define METHOD(name, function, flags) {name, (PyCFunction)(void (*)(void))(function), flags, NULL}

#endif
